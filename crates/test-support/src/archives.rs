//! Archives for uploads.

use std::io::{Cursor, Write};

/// A zip of these files.
pub fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, data) in files {
        zip.start_file(*name, zip::write::SimpleFileOptions::default()).expect("a name");
        zip.write_all(data).expect("memory");
    }
    zip.finish().expect("memory").into_inner()
}

/// A tar.gz of these files.
pub fn tar_gz(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (name, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, *data).expect("memory");
    }
    tar.into_inner().expect("memory").finish().expect("memory")
}

/// A multipart body with one field, and its content type.
pub fn multipart(field: &str, data: &[u8]) -> (Vec<u8>, String) {
    let edge = "faena-test-edge";
    let mut body =
        format!("--{edge}\r\nContent-Disposition: form-data; name=\"{field}\"; filename=\"x\"\r\n\r\n").into_bytes();
    body.extend_from_slice(data);
    body.extend_from_slice(format!("\r\n--{edge}--\r\n").as_bytes());
    (body, format!("multipart/form-data; boundary={edge}"))
}
