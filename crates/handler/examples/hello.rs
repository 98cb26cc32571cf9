//! A function that greets: `{"name": "Ada"}` is answered with `Hello, Ada`.

use serde::Deserialize;

#[derive(Deserialize)]
struct Params {
    name: String,
}

fn main() -> std::io::Result<()> {
    faena_handler::serve(|call| {
        let params: Params = serde_json::from_slice(call.params)?;
        Ok(format!("Hello, {}", params.name).into_bytes())
    })
}
