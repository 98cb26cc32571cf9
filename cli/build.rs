//! Has the linker merge functions whose code is the same: generic code of the many message types is compiled again and again.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=CARGO_ENCODED_RUSTFLAGS");
    // The toolchain links with LLD there unless it is told otherwise; other linkers do not know the flag.
    let is_lld = std::env::var("TARGET").is_ok_and(|target| target == "x86_64-unknown-linux-gnu")
        && !std::env::var("CARGO_ENCODED_RUSTFLAGS").is_ok_and(|flags| flags.contains("link"));
    if is_lld {
        println!("cargo:rustc-link-arg-bins=-Wl,--icf=all");
    }
}
