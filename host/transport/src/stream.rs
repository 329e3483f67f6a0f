//! The first bytes of each stream, which state its type. The stream of the hello has none.

use bytes::{BufMut, Bytes};
use quinn::{ConnectionError, WriteError};

use super::lane::{LANES, Lane};
use super::limits::MAX_BULK_HEADER;
use super::tuning::priority;
use super::wire::{Connection, Halves, RecvHalf};

const LANE: u8 = 1;
const BULK: u8 = 2;

/// Return the priority of a lane's stream among the others.
fn lane_priority(index: usize) -> i32 {
    match Lane::at(index) {
        Lane::Data => priority::DATA,
        Lane::Control => priority::CONTROL,
    }
}

/// Open all lanes of a connection, on the dialling side.
pub(super) async fn open_lanes(connection: &Connection) -> Result<Vec<Halves>, OpenError> {
    let mut lanes = Vec::with_capacity(LANES);
    for index in 0..LANES {
        let (mut send, recv) = connection.open_bi().await?;
        send.set_priority(lane_priority(index));
        send.write_all(&[LANE, index as u8]).await?;
        lanes.push((send, recv));
    }
    Ok(lanes)
}

/// Accept all lanes, on the accepting side. The caller sets the deadline.
pub(super) async fn accept_lanes(connection: &Connection) -> Result<Vec<Halves>, OpenError> {
    let mut lanes = Vec::with_capacity(LANES);
    for index in 0..LANES {
        let (send, mut recv) = connection.accept_bi().await?;
        send.set_priority(lane_priority(index));
        let mut head = [0; 2];
        recv.read_exact(&mut head).await.map_err(|_| OpenError::Unexpected)?;
        if head != [LANE, index as u8] {
            return Err(OpenError::Unexpected);
        }
        lanes.push((send, recv));
    }
    Ok(lanes)
}

/// Open a bulk stream and send its header.
pub(super) async fn open_bulk(connection: &Connection, kind: u8, header: Bytes) -> Result<Halves, OpenError> {
    if header.len() > MAX_BULK_HEADER {
        return Err(OpenError::Header { bytes: header.len() });
    }
    let (mut send, recv) = connection.open_bi().await?;
    send.set_priority(priority::BULK);
    let mut opening = Vec::with_capacity(6 + header.len());
    opening.put_slice(&[BULK, kind]);
    opening.put_u32(header.len() as u32);
    opening.put_slice(&header);
    send.write_all(&opening).await?;
    Ok((send, recv))
}

/// Read the header of a peer's bulk stream. The caller sets the deadline.
pub(super) async fn bulk_opening(recv: &mut RecvHalf) -> Result<(u8, Bytes), OpenError> {
    let mut head = [0; 6];
    recv.read_exact(&mut head).await.map_err(|_| OpenError::Unexpected)?;
    let [BULK, kind, length @ ..] = head else { return Err(OpenError::Unexpected) };
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_BULK_HEADER {
        return Err(OpenError::Header { bytes: length });
    }
    let mut header = vec![0; length];
    recv.read_exact(&mut header).await.map_err(|_| OpenError::Unexpected)?;
    Ok((kind, header.into()))
}

/// Reasons for which a stream could not be opened, or is invalid.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("a stream that is neither a lane nor bulk, or ended early")]
    Unexpected,
    #[error("a bulk header of {bytes} bytes, at most {MAX_BULK_HEADER} are allowed")]
    Header { bytes: usize },
}
