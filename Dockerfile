# The faena binary in an image, for compose.yaml.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN rustup target add "$(uname -m)-unknown-linux-musl" && cargo build --release --locked --package faena

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/release/faena /usr/local/bin/faena
ENTRYPOINT ["faena"]
