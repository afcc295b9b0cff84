//! The description of the interface, made from the code (`docs/openapi.json` is a copy, which
//! `tests/admin_api` compares).

use super::{
    archive, datasets, files, policies, pools, problems, restores, session, snapshots, states,
    tasks, watch,
};
use crate::admin::problem::ProblemBody;
use std::sync::LazyLock;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{
    ContentBuilder, OpenApi, PathItem, Ref, RefOr, ResponseBuilder, path::Operation,
};
use utoipa::{Modify, OpenApi as _};

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "ZeroFS CSI",
        description = "Datasets, snapshots and files of the pools of one server. JSON in \
            camelCase; times are RFC 3339, sizes are bytes. Names and paths that are not UTF-8 \
            come with their bytes in base 64; in queries a path is percent-encoded bytes. Lists \
            have `items` and `next`, which is the `cursor` of the next request. Errors are \
            application/problem+json.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    servers((url = "/api/v1")),
    paths(
        session::get, session::login, session::logout,
        pools::list, pools::get_space,
        datasets::list, datasets::get, datasets::create, datasets::change, datasets::rename,
        datasets::delete,
        snapshots::list, snapshots::get, snapshots::create, snapshots::delete, snapshots::hold,
        snapshots::release,
        files::entries, files::stat, files::content, archive::get,
        states::history, states::find, states::diff,
        restores::create,
        policies::list, policies::get, policies::set, policies::delete, policies::simulate,
        policies::run, tasks::list, tasks::get, tasks::stop, tasks::scrub, watch::get,
        problems::list,
    ),
    components(schemas(ProblemBody)),
    modifiers(&Common),
    security(("token" = []), ("session" = []))
)]
struct Described;

/// Answers that every operation can give.
struct Common;

impl Modify for Common {
    fn modify(&self, openapi: &mut OpenApi) {
        let components = openapi.components.get_or_insert_default();
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        components.add_security_scheme("token", SecurityScheme::Http(bearer));
        let cookie = SecurityScheme::ApiKey(ApiKey::Cookie(ApiKeyValue::new("zerofs_session")));
        components.add_security_scheme("session", cookie);
        openapi.paths.paths.values_mut().flat_map(operations).for_each(add_problem);
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let all = [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete];
    all.into_iter().flatten()
}

/// Any other answer is a problem.
fn add_problem(operation: &mut Operation) {
    let schema = Ref::from_schema_name("Problem");
    let content = ContentBuilder::new().schema(Some(RefOr::Ref(schema))).build();
    let response = ResponseBuilder::new()
        .description("The error, and the next step")
        .content("application/problem+json", content)
        .build();
    operation.responses.responses.insert("default".to_owned(), RefOr::T(response));
}

static TEXT: LazyLock<String> = LazyLock::new(|| {
    let mut text = Described::openapi().to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
});

/// The description as JSON.
pub fn text() -> &'static str {
    &TEXT
}
