//! Which web pages may ask (CORS), for the whole data port.
//!
//! A browser lets a page of another origin read an answer only if the answer allows it. Nothing is allowed unless it is
//! configured, and then without credentials: there are none here that a browser would add by itself. Requests of other
//! origins are served like those without one, and get no permission: keeping them out is not what CORS is for.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::Response,
};
use http::{
    HeaderName, HeaderValue, Method, Uri,
    header::{CONTENT_LENGTH, ORIGIN, RETRY_AFTER, VARY},
};
use serde::{Deserialize, Serialize};
use tower::{Layer as _, ServiceExt as _};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

/// In place of a list: every page may ask.
pub const ANY: &str = "*";
/// How long a browser may remember a permission.
const REMEMBERED: Duration = Duration::from_hours(1);
/// Response headers that scripts may read.
const READABLE: [HeaderName; 10] = [
    HeaderName::from_static("shape"),
    HeaderName::from_static("dtype"),
    HeaderName::from_static("cache-status"),
    HeaderName::from_static("latentgate-key"),
    HeaderName::from_static("server-timing"),
    CONTENT_LENGTH,
    RETRY_AFTER,
    HeaderName::from_static("grpc-status"),
    HeaderName::from_static("grpc-message"),
    HeaderName::from_static("grpc-status-details-bin"),
];

/// `[cors]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Origins whose pages may ask, as browsers spell them (`https://studio.example`), or `*` alone for all. None: no
    /// page of another origin.
    pub origins: Vec<String>,
}

/// Whom to allow, and the answer's headers for them.
struct Rules {
    /// None: everybody.
    origins: Option<Vec<HeaderValue>>,
    layer: CorsLayer,
}

/// Whether `text` is an origin as a browser would send it: scheme, host, and the port where it is not the scheme's own.
pub fn is_origin(text: &str) -> bool {
    let Ok(uri) = text.parse::<Uri>() else { return false };
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return false };
    let default_port = match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    };
    let is_redundant = authority.port_u16().is_some() && authority.port_u16() == default_port;
    let spelled = format!("{scheme}://{authority}").to_ascii_lowercase();
    !authority.as_str().contains(['@', '*']) && !is_redundant && text == spelled
}

/// The same routes, answers and preflight answers of which allow the configured origins.
pub fn over(router: Router, config: &Config) -> Router {
    if config.origins.is_empty() {
        return router;
    }
    router.layer(from_fn_with_state(Arc::new(Rules::of(config)), allow))
}

async fn allow(State(rules): State<Arc<Rules>>, request: Request, next: Next) -> Response {
    if rules.allow(request.headers().get(ORIGIN)) {
        let answer = rules.layer.layer(next).oneshot(request).await;
        return answer.unwrap_or_else(|never| match never {});
    }
    let mut response = next.run(request).await;
    // A cache between must not give this answer to a page that is allowed.
    response.headers_mut().append(VARY, HeaderValue::from_name(ORIGIN));
    response
}

// === impl Rules ===

impl Rules {
    fn of(config: &Config) -> Self {
        let is_any = config.origins.iter().any(|origin| origin == ANY);
        let listed = config.origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect();
        let layer = CorsLayer::new()
            // Origins are judged before the layer is asked.
            .allow_origin(if is_any { AllowOrigin::any() } else { AllowOrigin::mirror_request() })
            .allow_methods([Method::GET, Method::POST, Method::OPTIONS])
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(READABLE)
            .max_age(REMEMBERED);
        Self { origins: (!is_any).then_some(listed), layer }
    }

    fn allow(&self, origin: Option<&HeaderValue>) -> bool {
        let Some(origin) = origin else { return false };
        self.origins.as_ref().is_none_or(|listed| listed.contains(origin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_what_browsers_send() {
        for origin in [
            "https://studio.example",
            "http://localhost:5173",
            "http://127.0.0.1:8080",
            "http://[::1]:8080",
            "https://studio.example:8443",
            "chrome-extension://abcdefgh",
        ] {
            assert!(is_origin(origin), "{origin}");
        }
        for other in [
            "",
            "*",
            "null",
            "studio.example",
            "https://",
            "https://studio.example/",
            "https://studio.example/app",
            "https://studio.example?x",
            "https://Studio.example",
            "HTTPS://studio.example",
            "https://studio.example:443",
            "http://studio.example:80",
            "https://me@studio.example",
            "https://*.example",
            "https://studio.example ",
            "https://stüdio.example",
        ] {
            assert!(!is_origin(other), "{other}");
        }
    }
}
