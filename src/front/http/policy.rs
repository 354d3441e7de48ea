//! `Cache-Control` of a request (RFC 9111) as a cache policy.

use http::{HeaderMap, header};

use crate::job::CachePolicy;

/// `only-if-cached`, `no-store`, `no-cache` (compute and refresh); other directives say nothing here. The first that is
/// known counts, in this order: a request that may not be computed is not computed, whatever else it says.
pub(super) fn of(headers: &HeaderMap) -> CachePolicy {
    let says = |directive: &str| {
        let values = headers.get_all(header::CACHE_CONTROL).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(directive))
    };
    if says("only-if-cached") {
        CachePolicy::OnlyIfCached
    } else if says("no-store") {
        CachePolicy::NoStore
    } else if says("no-cache") {
        CachePolicy::Bypass
    } else {
        CachePolicy::Default
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_of_http_are_policies() {
        for (value, policy) in [
            ("no-cache", CachePolicy::Bypass),
            ("max-age=0, No-Store", CachePolicy::NoStore),
            ("no-cache,only-if-cached", CachePolicy::OnlyIfCached),
            ("max-age=60", CachePolicy::Default),
            ("", CachePolicy::Default),
        ] {
            let headers = HeaderMap::from_iter([(header::CACHE_CONTROL, value.parse().unwrap())]);
            assert_eq!(of(&headers), policy, "{value}");
        }
        assert_eq!(of(&HeaderMap::new()), CachePolicy::Default);
    }
}
