//! What is best known to work at each time: [cold start](super::cold_start) until a trained model has scored the images,
//! [ClaSP](super::clasp) from then on.

use serde_json::json;

use super::pool::Pick;
use super::{Pool, Rng, clasp, cold_start};

pub(super) fn pick(pool: &Pool, rng: &mut Rng) -> Pick {
    let (name, (index, mut told)) = if pool.uncertain().is_empty() {
        ("cold_start", cold_start::pick(pool, rng))
    } else {
        ("clasp", clasp::pick(pool, rng))
    };
    told.entry("chosen_by").or_insert_with(|| json!(name));
    (index, told)
}
