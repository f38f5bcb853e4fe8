//! Between the words of this module and those of the wire.

use bytes::Bytes;

use super::decide::Version;
use crate::cell::{Cell, Stamp};
use crate::store::leaves::{Cut, Horizon};
use crate::thrift::chord::{PeerCut, PeerHeld, PeerVersion};

pub(super) fn cut(cut: &Cut) -> PeerCut {
    PeerCut::new(cut.upto.0, cut.beyond.0, cut.horizon.stamp.0, cut.horizon.expired_s)
}

/// What is missing counts nothing.
pub(super) fn read_cut(told: &PeerCut) -> Cut {
    Cut {
        upto: Stamp(told.upto.unwrap_or(0)),
        beyond: Stamp(told.beyond.unwrap_or(i64::MAX)),
        horizon: horizon(told),
    }
}

pub(super) fn horizon(told: &PeerCut) -> Horizon {
    Horizon { stamp: Stamp(told.collected.unwrap_or(0)), expired_s: told.expired.unwrap_or(0) }
}

pub(super) fn of_horizon(horizon: Horizon) -> PeerCut {
    PeerCut::new(0, 0, horizon.stamp.0, horizon.expired_s)
}

pub(super) fn peer_version(version: Version) -> PeerVersion {
    PeerVersion::new(version.key, version.stamp.0, version.hash.to_be_bytes().to_vec())
}

/// `None`: these are no versions in rising order of their keys.
pub(super) fn versions(told: Vec<PeerVersion>) -> Option<Vec<Version>> {
    let version = |told: PeerVersion| {
        let hash = u128::from_be_bytes(told.hash?.try_into().ok()?);
        Some(Version { key: told.engine_key?, stamp: Stamp(told.stamp?), hash })
    };
    let versions: Option<Vec<Version>> = told.into_iter().map(version).collect();
    versions.filter(|versions| versions.windows(2).all(|pair| pair[0].key < pair[1].key))
}

pub(super) fn held(key: &[u8], cell: &Cell) -> PeerHeld {
    let mut encoded = Vec::with_capacity(cell.encoded_len());
    cell.encode(&mut encoded);
    PeerHeld::new(key.to_vec(), encoded)
}

/// `None`: this is no cell.
pub(super) fn cell(told: PeerHeld) -> Option<(Vec<u8>, Cell)> {
    let bytes = Bytes::from(told.cell?);
    let cell = Cell::decode(&bytes).ok()?.share(&bytes);
    Some((told.engine_key?, cell))
}
