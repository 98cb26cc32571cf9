//! A function that answers with what it was sent: the body of a request that is no JSON, else the params.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    body_base64: String,
}

fn main() -> std::io::Result<()> {
    faena_handler::serve(|params, _context| match serde_json::from_slice::<Request>(params) {
        Ok(request) => Ok(STANDARD.decode(request.body_base64)?),
        Err(_) => Ok(params.to_vec()),
    })
}
