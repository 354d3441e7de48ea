use super::*;
use crate::{body::Body, meta::Meta};

fn artifact(bytes: usize) -> Arc<Artifact> {
    let (mut writer, _body) = Body::channel();
    writer.begin(Meta::sample(bytes as u64)).unwrap();
    writer.append(vec![1u8; bytes].into()).unwrap();
    let mut made = None;
    writer.finish(|meta, seal, body| made = Some(Artifact::of(meta, seal, body))).unwrap();
    made.unwrap()
}

fn memory(capacity: u64) -> Memory {
    Memory::new(&Config { capacity: ByteSize(capacity), time_to_live: None }, Metrics::new())
}

#[test]
fn what_goes_in_comes_out_as_the_same_allocation() {
    let (memory, kept) = (memory(1 << 20), artifact(1000));
    memory.insert(ContentKey::sample(1), kept.clone());
    assert!(Arc::ptr_eq(&memory.get(&ContentKey::sample(1)).unwrap(), &kept));
    assert!(memory.get(&ContentKey::sample(2)).is_none());
}

#[test]
fn bytes_bound_it_bookkeeping_included() {
    let memory = memory(100 << 10);
    for n in 0..200 {
        memory.insert(ContentKey::sample(n), artifact(9 << 10));
    }
    memory.report();
    let text = memory.metrics.render();
    assert!(memory.map.weighted_size() <= 100 << 10);
    assert_eq!(memory.map.entry_count(), 10);
    assert!(text.contains(r#"latentgate_cache_evictions_total{tier="memory",reason="size"}"#), "{text}");
    assert!(text.contains(r#"latentgate_cache_capacity_bytes{tier="memory"} 102400"#), "{text}");
}

#[test]
fn a_tier_of_nothing_keeps_nothing() {
    let memory = memory(0);
    memory.insert(ContentKey::sample(1), artifact(10));
    memory.report();
    assert!(memory.get(&ContentKey::sample(1)).is_none());
}
