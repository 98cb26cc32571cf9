//! A function that answers with what it was sent: the body of a request that is no JSON, else the params.

fn main() -> std::io::Result<()> {
    faena_handler::serve(|call| Ok(if call.body.is_empty() { call.params } else { call.body }.to_vec()))
}
