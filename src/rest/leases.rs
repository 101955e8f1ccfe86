//! `/leases`: who works on which image.
//!
//! The next sample is leased to the `client_id` that asked, so that nobody else is offered it. The answer of
//! `/activelearning/{strategy}` has it as `lease`, which old clients ignore:
//! `{"image": "case_1", "client_id": "ann", "strategy": "random", "taken_ts": 0, "expires_ts": 0, "expires_in_s": 14400.0,
//! "again": false}`. Who asks again gets the same image (`"again": true`), until it is labelled, given back or the lease
//! is over; with `"skip": true` in the body it is given back and another one offered. Clients that send no `client_id`
//! get an image that nobody has leased, and no lease. When everything that is left is leased to others the answer has
//! no `id`: `{"leased": 3}`.
//!
//! | route | what it does | answer |
//! |---|---|---|
//! | `GET /leases/` | leases that are not over, the next to end first | `{"leases": [Lease], "lease_s": 14400}` |
//! | `PUT /leases/?image=ID&client_id=C` | renews it from now on | `Lease`; 404 `not_found`, 409 `conflict` (another's) |
//! | `DELETE /leases/?image=ID&client_id=C` | gives it back | `Lease` as it was; likewise |

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::App;
use super::error::ApiError;
use super::query::Query;
use crate::project::ImageId;
use crate::rounds::leases::{self, Lease};
use crate::rounds::settings::Settings;

/// Leases that are not over.
#[utoipa::path(get, path = "/leases/", tag = "Rounds",
    responses((status = 200, description = "{leases: [{image, client_id, strategy, taken_ts, expires_ts, expires_in_s}], lease_s}")))]
pub async fn list(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    let now_ms = app.project.clock().now_ms();
    let leases = leases::list(&app.project).await?;
    let leases: Vec<Value> = leases.iter().map(|lease| object(lease, now_ms)).collect();
    let lease_s = Settings::of(&app.project).await?.lease_s;
    Ok(Json(json!({"leases": leases, "lease_s": lease_s})))
}

/// Renew a lease.
#[utoipa::path(put, path = "/leases/", tag = "Rounds",
    params(
        ("image" = String, Query, description = "image id"),
        ("client_id" = String, Query, description = "who has it")),
    responses((status = 200, description = "the lease"), (status = 404, description = "the image is not leased any more"),
        (status = 409, description = "somebody else has it")))]
pub async fn renew(State(app): State<App>, query: Query) -> Result<Json<Value>, ApiError> {
    let (image, client) = named(query)?;
    let lease = leases::renew(&app.project, &image, &client).await?;
    Ok(Json(object(&lease, app.project.clock().now_ms())))
}

/// Give an image back, so that it is offered to others.
#[utoipa::path(delete, path = "/leases/", tag = "Rounds",
    params(
        ("image" = String, Query, description = "image id"),
        ("client_id" = String, Query, description = "who has it")),
    responses((status = 200, description = "the lease as it was"), (status = 404, description = "the image is not leased any more"),
        (status = 409, description = "somebody else has it")))]
pub async fn give_back(State(app): State<App>, query: Query) -> Result<Json<Value>, ApiError> {
    let (image, client) = named(query)?;
    let project = app.project.acting_as(&client);
    let lease = leases::give_back(&project, &image, &client).await?;
    Ok(Json(object(&lease, project.clock().now_ms())))
}

fn named(query: Query) -> Result<(ImageId, String), ApiError> {
    let (image, client) = query.read(|q| (q.required("image"), q.required("client_id")))?;
    Ok((ImageId::parse(&image)?, client))
}

/// A lease as clients see it.
pub fn object(lease: &Lease, now_ms: i64) -> Value {
    json!({
        "image": lease.image.as_str(),
        "client_id": lease.client,
        "strategy": lease.strategy,
        "taken_ts": lease.taken_ms.div_euclid(1000),
        "expires_ts": lease.until_ms.div_euclid(1000),
        "expires_in_s": (lease.until_ms - now_ms).max(0) as f64 / 1000.0,
    })
}
