//! A zip file that is made while it is sent: entries stored as they are (volumes are compressed
//! already), nothing held in memory, `Content-Length` known before the first byte.
//!
//! Format: PKWARE APPNOTE 6.3.10. Every entry is zip64 and has its CRC in a data descriptor behind
//! the data, because it is only known then.

use std::io;
use std::path::PathBuf;

use axum::body::Body;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use flate2::Crc;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_util::io::ReaderStream;

/// One file of the archive.
pub struct Entry {
    /// Path inside the archive, with `/`.
    pub name: String,
    /// Where its bytes come from.
    pub source: Source,
}

/// Bytes of an [`Entry`].
pub enum Source {
    /// A file on disk.
    File(PathBuf),
    /// Bytes made here.
    Bytes(Vec<u8>),
}

/// Zip64 fields say "see the extra field".
const IN_EXTRA: u32 = u32::MAX;
/// Made by and needs version 4.5 (zip64).
const VERSION: u16 = 45;
/// CRC in a data descriptor (bit 3), names in UTF-8 (bit 11).
const FLAGS: u16 = 1 << 3 | 1 << 11;
/// 1980-01-01 in DOS format; the archive does not tell when files were made.
const DATE: u16 = 1 << 5 | 1;
/// Bytes between the writing task and the connection.
const PIPE_BYTES: usize = 1 << 16;

/// The archive of `entries` as download called `name`.
///
/// # Errors
/// When a file cannot be looked at. A file that shrinks later ends the download early.
pub async fn download(name: &str, entries: Vec<Entry>) -> io::Result<Response> {
    let mut sized = Vec::with_capacity(entries.len());
    for entry in entries {
        let size_bytes = match &entry.source {
            Source::File(path) => tokio::fs::metadata(path).await?.len(),
            Source::Bytes(bytes) => bytes.len() as u64,
        };
        sized.push((entry, size_bytes));
    }
    // Numbers have a fixed width, so the length of the headers does not depend on them.
    let headers_bytes = |(entry, size_bytes): &(Entry, u64)| {
        let headers = local_header(&entry.name, 0).len() + descriptor(0, 0).len();
        (headers + central_header(&entry.name, 0, 0, 0).len()) as u64 + size_bytes
    };
    let length_bytes =
        sized.iter().map(headers_bytes).sum::<u64>() + end_of_archive(0, 0, 0).len() as u64;
    let (mut sink, pipe) = tokio::io::duplex(PIPE_BYTES);
    tokio::spawn(async move {
        if let Err(error) = write(&mut sink, sized).await {
            tracing::warn!("a dataset download ended early: {error}");
        }
    });
    let headers = [
        (CONTENT_TYPE, "application/octet-stream".to_owned()),
        (CONTENT_LENGTH, length_bytes.to_string()),
        (
            CONTENT_DISPOSITION,
            format!("attachment; filename=\"{name}\""),
        ),
    ];
    Ok((headers, Body::from_stream(ReaderStream::new(pipe))).into_response())
}

async fn write(sink: &mut DuplexStream, entries: Vec<(Entry, u64)>) -> io::Result<()> {
    let mut central = Vec::new();
    let mut offset = 0u64;
    let count = entries.len() as u64;
    for (entry, size_bytes) in entries {
        let header = local_header(&entry.name, size_bytes);
        sink.write_all(&header).await?;
        let mut crc = Crc::new();
        match entry.source {
            Source::Bytes(bytes) => {
                crc.update(&bytes);
                sink.write_all(&bytes).await?;
            }
            Source::File(path) => copy(File::open(path).await?, size_bytes, sink, &mut crc).await?,
        }
        let descriptor = descriptor(crc.sum(), size_bytes);
        sink.write_all(&descriptor).await?;
        central.extend(central_header(&entry.name, size_bytes, crc.sum(), offset));
        offset += header.len() as u64 + size_bytes + descriptor.len() as u64;
    }
    sink.write_all(&central).await?;
    let end = end_of_archive(count, central.len() as u64, offset);
    sink.write_all(&end).await?;
    sink.shutdown().await
}

async fn copy(
    file: File,
    size_bytes: u64,
    sink: &mut DuplexStream,
    crc: &mut Crc,
) -> io::Result<()> {
    let mut file = file.take(size_bytes);
    let mut buffer = vec![0; PIPE_BYTES];
    let mut left = size_bytes;
    while left > 0 {
        let count = file.read(&mut buffer).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        crc.update(&buffer[..count]);
        sink.write_all(&buffer[..count]).await?;
        left -= count as u64;
    }
    Ok(())
}

/// The fields that local and central headers share (APPNOTE 4.3.7, 4.3.12), from "version needed".
fn common(crc: u32, name: &str, extra: &[u8]) -> Vec<u8> {
    let mut header = Vec::new();
    for field in [
        VERSION, FLAGS, 0, /* stored */
        0, /* midnight */
        DATE,
    ] {
        header.extend(field.to_le_bytes());
    }
    for field in [crc, IN_EXTRA, IN_EXTRA] {
        header.extend(field.to_le_bytes());
    }
    for length in [name.len(), extra.len()] {
        header.extend((length as u16).to_le_bytes());
    }
    header
}

/// The zip64 extra field (APPNOTE 4.5.3).
fn zip64_extra(numbers: &[u64]) -> Vec<u8> {
    let mut extra = vec![1, 0];
    extra.extend((8 * numbers.len() as u16).to_le_bytes());
    extra.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    extra
}

fn local_header(name: &str, size_bytes: u64) -> Vec<u8> {
    let extra = zip64_extra(&[size_bytes, size_bytes]);
    [
        b"PK\x03\x04".as_slice(),
        &common(0, name, &extra),
        name.as_bytes(),
        &extra,
    ]
    .concat()
}

fn descriptor(crc: u32, size_bytes: u64) -> Vec<u8> {
    let size_bytes = size_bytes.to_le_bytes();
    [
        b"PK\x07\x08".as_slice(),
        &crc.to_le_bytes(),
        &size_bytes,
        &size_bytes,
    ]
    .concat()
}

fn central_header(name: &str, size_bytes: u64, crc: u32, offset: u64) -> Vec<u8> {
    let extra = zip64_extra(&[size_bytes, size_bytes, offset]);
    let made_by = VERSION.to_le_bytes();
    [
        b"PK\x01\x02".as_slice(),
        &made_by,
        &common(crc, name, &extra),
        &[0; 10], // no comment, disk 0, no attributes
        &IN_EXTRA.to_le_bytes(),
        name.as_bytes(),
        &extra,
    ]
    .concat()
}

/// Zip64 end of central directory, its locator, and the old end record (APPNOTE 4.3.14 to 4.3.16).
fn end_of_archive(count: u64, central_bytes: u64, central_offset: u64) -> Vec<u8> {
    let mut end = b"PK\x06\x06".to_vec();
    end.extend(44u64.to_le_bytes()); // bytes that follow in this record
    end.extend(
        [VERSION, VERSION]
            .iter()
            .flat_map(|version| version.to_le_bytes()),
    );
    end.extend([0; 8]); // this is disk 0 of one
    for number in [count, count, central_bytes, central_offset] {
        end.extend(number.to_le_bytes());
    }
    end.extend(b"PK\x06\x07\0\0\0\0");
    end.extend((central_offset + central_bytes).to_le_bytes());
    end.extend(1u32.to_le_bytes());
    end.extend(b"PK\x05\x06");
    end.extend([0; 4]);
    end.extend([0xFF; 12]); // all in the zip64 record
    end.extend([0; 2]);
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn length_is_known_before_and_crc_comes_behind() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![7; 100_000]).unwrap();
        let entries = vec![
            Entry {
                name: "image/é.nii".into(),
                source: Source::File(file.path().into()),
            },
            Entry {
                name: "metadata.json".into(),
                source: Source::Bytes(b"{}".to_vec()),
            },
        ];
        let response = download("dataset.zip", entries).await.unwrap();
        let length = response.headers()[CONTENT_LENGTH]
            .to_str()
            .unwrap()
            .to_owned();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20)
            .await
            .unwrap();
        assert_eq!(length, bytes.len().to_string());
        let mut crc = Crc::new();
        crc.update(&[7; 100_000]);
        let behind = 4 + 26 + "image/é.nii".len() + 20 + 100_000;
        assert_eq!(
            bytes[behind..behind + 8],
            [b"PK\x07\x08", crc.sum().to_le_bytes().as_slice()].concat()
        );
    }
}
