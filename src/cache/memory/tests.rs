use super::*;

fn memory(capacity: u64) -> Memory {
    Memory::new(&Config { capacity: ByteSize(capacity), time_to_live: None }, Metrics::new())
}

#[test]
fn what_goes_in_comes_out_as_the_same_allocation() {
    let (memory, kept) = (memory(1 << 20), Artifact::sample(1, vec![1; 1000]));
    memory.insert(kept.clone(), None);
    assert!(Arc::ptr_eq(&memory.get(&ContentKey::sample(1)).unwrap(), &kept));
    assert!(memory.get(&ContentKey::sample(2)).is_none());
}

#[test]
fn bytes_bound_it_bookkeeping_included() {
    let memory = memory(100 << 10);
    for n in 0..200 {
        memory.insert(Artifact::sample(n, vec![1; 9 << 10]), None);
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
    memory.insert(Artifact::sample(1, vec![1; 10]), None);
    memory.report();
    assert!(memory.get(&ContentKey::sample(1)).is_none());
}

#[test]
fn purging_takes_what_is_meant_and_leaves_the_rest() {
    let memory = memory(1 << 20);
    for n in 0..10 {
        memory.insert(Artifact::sample(n, vec![n; 100]), None);
    }
    assert_eq!(memory.purge(|artifact| artifact.key() < &ContentKey::sample(4)), 4);
    assert!(memory.get(&ContentKey::sample(3)).is_none() && memory.get(&ContentKey::sample(4)).is_some());
}

#[test]
fn an_artifact_goes_at_the_end_of_its_own_life() {
    let memory = memory(1 << 20);
    memory.insert(Artifact::sample(1, vec![1; 10]), Some(Duration::ZERO));
    memory.insert(Artifact::sample(2, vec![1; 10]), Some(Duration::from_hours(1)));
    assert!(memory.get(&ContentKey::sample(1)).is_none() && memory.get(&ContentKey::sample(2)).is_some());
}

#[test]
fn what_comes_out_of_a_tier_replaces_nothing_and_a_better_form_only_its_own() {
    let memory = memory(1 << 20);
    let [new, old, better] = [3, 2, 1].map(|length| Artifact::sample(1, vec![0; length]));
    memory.insert(new.clone(), None);
    memory.restore(old.clone(), None);
    assert!(Arc::ptr_eq(&memory.get(new.key()).unwrap(), &new));
    memory.replace(&old, better.clone());
    assert!(Arc::ptr_eq(&memory.get(new.key()).unwrap(), &new));
    memory.replace(&new, better.clone());
    assert!(Arc::ptr_eq(&memory.get(new.key()).unwrap(), &better));
    assert_eq!(memory.purge(|_| true), 1);
    memory.replace(&better, old.clone());
    assert!(memory.get(new.key()).is_none(), "what was purged does not come back");
    memory.restore(old.clone(), None);
    assert!(Arc::ptr_eq(&memory.get(new.key()).unwrap(), &old));
}
