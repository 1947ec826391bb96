//! Uploading a bundle to a node.

use bytes::Bytes;

use super::{TransferError, ask, held, link_to};
use crate::bundle::{BundleFile, FileList};
use crate::error::{ControlError, reason};
use crate::frame::Kind;
use crate::limits::CHUNK_BYTES_MAX;
use crate::messages::control::{BundleRequest, BundleResponse};
use crate::quic::links::Links;
use crate::quic::stream::{finish, read_message, write_body, write_message};

/// Uploads the files of a bundle that the node at `address` does not hold, and seals it there. `read` gives a file's bytes
/// from an offset, at most a chunk; `progress` hears of each chunk sent.
///
/// # Errors
/// [`TransferError`] when the connection breaks or the other side refuses.
pub async fn upload<R, F>(
    links: &Links,
    address: &str,
    list: &FileList,
    mut read: R,
    mut progress: impl FnMut(u64),
) -> Result<(), TransferError>
where
    R: FnMut(BundleFile, u64, u64) -> F,
    F: Future<Output = std::io::Result<Bytes>>,
{
    let missing = match ask(links, address, &BundleRequest::Missing { files: list.clone() }).await? {
        BundleResponse::Missing(missing) => missing,
        BundleResponse::Files(_)
        | BundleResponse::Follows { .. }
        | BundleResponse::Held
        | BundleResponse::Failed(_) => return Err(TransferError::WrongAnswer),
    };
    for file in list.files().iter().filter(|file| missing.contains(&file.digest)) {
        let link = link_to(links, address).await?;
        let (mut send, mut recv) = link.open().await?;
        write_message(&mut send, Kind::BundleRequest, &BundleRequest::Put { file: file.clone() }).await?;
        let mut offset = 0;
        while offset < file.bytes {
            let chunk = read(file.clone(), offset, CHUNK_BYTES_MAX.min(file.bytes - offset)).await;
            let chunk = chunk.map_err(|error| ControlError::Storage { reason: reason(error) })?;
            if chunk.is_empty() {
                let what = format!("{} became shorter while it was read", file.name);
                return Err(ControlError::Storage { reason: what }.into());
            }
            offset += chunk.len() as u64;
            progress(chunk.len() as u64);
            if let Err(broken) = write_body(&mut send, Kind::BundleChunk, chunk).await {
                // A side that refuses the file stops taking its bytes; the answer says why.
                return match read_message(&mut recv, Kind::BundleResponse).await {
                    Ok(BundleResponse::Failed(refusal)) => Err(refusal.into()),
                    Ok(_) | Err(_) => Err(broken.into()),
                };
            }
        }
        finish(&mut send);
        held(read_message(&mut recv, Kind::BundleResponse).await?)?;
    }
    held(ask(links, address, &BundleRequest::Seal { files: list.clone() }).await?)
}
