use metrics::Unit;

use super::*;

#[test]
fn names_bear_the_prefix_and_their_unit() {
    for declared in CATALOGUE {
        assert!(declared.name.starts_with("latentgate_"), "{}", declared.name);
        match declared.kind {
            Kind::Counter => assert!(declared.name.ends_with("_total"), "{}", declared.name),
            Kind::Histogram => assert!(declared.name.ends_with("_seconds"), "{}", declared.name),
            Kind::Gauge => assert!(!declared.name.ends_with("_total"), "{}", declared.name),
        }
        if declared.unit == Some(Unit::Bytes) {
            assert!(declared.name.contains("_bytes"), "{}", declared.name);
        }
    }
}

#[test]
fn two_apps_count_apart() {
    let (one, other) = (Metrics::new(), Metrics::new());
    one.error("bad_request");
    assert!(one.render().contains(r#"latentgate_errors_total{reason="bad_request"} 1"#));
    assert!(!other.render().contains("latentgate_errors_total{"));
}

#[test]
fn what_is_alive_is_counted_while_it_lives() {
    let metrics = Metrics::new();
    let alive = metrics.inflight_bytes(4096);
    assert!(metrics.render().contains("latentgate_inflight_bytes 4096"));
    drop(alive);
    assert!(metrics.render().contains("latentgate_inflight_bytes 0"));
}
