//! REST, with its OpenAPI document made from the handlers.

mod access;
mod answers;
mod client_settings;
mod decoders;
mod devices;
mod query;
mod readings;
mod sql;
mod system;
mod tokens;

use std::sync::Arc;

use axum::Router;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::ServeState;

#[derive(OpenApi)]
#[openapi(
    info(title = "Catchment", description = "Telemetry in, kept, and answered. \
        Times in requests are RFC 3339, epoch seconds or milliseconds, `now`, or before now such as `-1h`. \
        Every refusal is `{error, message, hint?}`."),
    security(("token" = [])),
    modifiers(&BearerToken),
    paths(crate::live::live, crate::live::tail),
    tags(
        (name = "devices", description = "What sends"),
        (name = "readings", description = "What was sent"),
        (name = "decoders", description = "How payloads become readings"),
        (name = "sql", description = "Questions over all tables"),
        (name = "tokens", description = "Who may do what"),
        (name = "access", description = "Realms and limits, rules about topics, bans"),
        (name = "system", description = "How the platform is")
    )
)]
struct Api;

struct BearerToken;

impl Modify for BearerToken {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        openapi.components.get_or_insert_default().add_security_scheme("token", scheme);
    }
}

/// The routes, and the document that describes them and `others`, as JSON.
pub(crate) fn router(others: utoipa::openapi::OpenApi) -> (Router<Arc<ServeState>>, String) {
    let (router, mut openapi) = OpenApiRouter::with_openapi(Api::openapi())
        .routes(routes!(devices::list_devices, devices::create_device))
        .routes(routes!(devices::get_device, devices::put_device, devices::delete_device))
        .routes(routes!(readings::snapshot))
        .routes(routes!(readings::history))
        .routes(routes!(readings::aggregates))
        .routes(routes!(readings::events))
        .routes(routes!(readings::rejects))
        .routes(routes!(decoders::list_decoders))
        .routes(routes!(decoders::get_decoder, decoders::put_decoder, decoders::delete_decoder))
        .routes(routes!(decoders::test_decoder))
        .routes(routes!(tokens::list_tokens, tokens::create_token))
        .routes(routes!(tokens::delete_token))
        .routes(routes!(devices::put_password, devices::delete_password))
        .routes(routes!(access::list_realms))
        .routes(routes!(access::put_realm))
        .routes(routes!(access::list_rules, access::create_rule))
        .routes(routes!(access::delete_rule))
        .routes(routes!(access::list_bans, access::create_ban))
        .routes(routes!(access::delete_ban))
        .routes(routes!(sql::run_sql))
        .routes(routes!(sql::list_queries))
        .routes(routes!(sql::cancel_query))
        .merge(system_routes())
        .split_for_parts();
    openapi.merge(others);
    // Plain data made by the macros: it always serializes.
    (router, openapi.to_pretty_json().unwrap_or_default())
}

/// The routes that tell how the process is.
pub(crate) fn operations() -> Router<Arc<ServeState>> {
    system_routes().into()
}

fn system_routes() -> OpenApiRouter<Arc<ServeState>> {
    OpenApiRouter::new()
        .routes(routes!(system::status))
        .routes(routes!(system::metrics))
        .routes(routes!(system::healthz))
        .routes(routes!(system::readyz))
}
