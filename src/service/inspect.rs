//! Service `Inspect`: what this server itself holds, as digests or page by page. Each call walks a bounded stretch, so
//! that a look at a large store never holds up its clients.

use crate::cell::{Cell, Content};
use crate::key;
use crate::store::cell_hash;
use crate::thrift::chord::{CellRow, DigestRequest, DigestResult, InvalidRequest, PageRequest, PageResult};
use crate::thrift::connection::Held;

use super::{Service, held};

/// Bytes of the values and keys in one page; a single larger cell is a page nonetheless.
const PAGE_BYTES_MAX: usize = 1 << 20;

impl Service {
    pub(super) fn inspect_digest(&self, request: &DigestRequest) -> Result<DigestResult, InvalidRequest> {
        let (after, upto) = (bytes_of(&request.after), bytes_of(&request.upto));
        let digest = self.store.digest(after, upto, self.cells_max(request.cells), self.clock.wall_s());
        let digest = digest.map_err(|error| invalid(error.to_string()))?;
        Ok(DigestResult::new(
            digest.cells as i64,
            digest.digest.to_be_bytes().to_vec(),
            digest.upto,
            digest.complete,
            digest.live as i64,
        ))
    }

    pub(super) fn inspect_page(&self, request: &PageRequest) -> Result<(PageResult, Held), InvalidRequest> {
        let (after, upto) = (bytes_of(&request.after), bytes_of(&request.upto));
        let page = self
            .store
            .page(after, upto, self.cells_max(request.cells))
            .map_err(|error| invalid(error.to_string()))?;
        let value_bytes_max = request.value_bytes.unwrap_or(0).max(0) as usize;
        let mut rows = Vec::with_capacity(page.cells.len());
        let mut bytes = 0;
        let (mut upto, mut complete) = (page.upto, page.complete);
        for (engine_key, cell) in &page.cells {
            let size = engine_key.len() * 2 + cell.value_bytes().len().min(value_bytes_max);
            if bytes + size > PAGE_BYTES_MAX && !rows.is_empty() {
                (upto, complete) = (page.cells[rows.len() - 1].0.clone(), false);
                break;
            }
            bytes += size;
            rows.push(row(engine_key, cell, value_bytes_max)?);
        }
        bytes += rows.len() * size_of::<CellRow>();
        let share = self
            .coordinator
            .admit_answer(bytes)
            .map_err(|refused| invalid(format!("nothing is wrong with the request, but: {refused}")))?;
        Ok((PageResult::new(rows, upto, complete), held(share)))
    }

    fn cells_max(&self, asked: Option<i32>) -> usize {
        let most = self.config.inspect_cells_max;
        match asked {
            Some(asked) if asked > 0 => most.min(asked as usize),
            _ => most,
        }
    }
}

fn row(engine_key: &[u8], cell: &Cell, value_bytes_max: usize) -> Result<CellRow, InvalidRequest> {
    let place = key::decode(engine_key).map_err(|error| invalid(format!("damaged data: {error}")))?;
    let kind = match cell.content {
        Content::Value(_) => "value",
        Content::Expiring { .. } => "expiring",
        Content::Tombstone => "tombstone",
    };
    let value = cell.value_bytes();
    Ok(CellRow::new(
        engine_key.to_vec(),
        i32::from(place.table.0),
        place.partition.to_vec(),
        place.column.to_vec(),
        cell.stamp.0,
        kind.to_owned(),
        value[..value.len().min(value_bytes_max)].to_vec(),
        value.len() as i64,
        cell.expires_at_s().unwrap_or(0),
        cell_hash(engine_key, cell).to_be_bytes().to_vec(),
    ))
}

fn bytes_of(field: &Option<Vec<u8>>) -> &[u8] {
    field.as_deref().unwrap_or(&[])
}

fn invalid(why: String) -> InvalidRequest {
    InvalidRequest { why: Some(why) }
}
