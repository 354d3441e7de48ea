//! What each device can do for each model, and what all of them together say.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

use super::engine::Device;
use crate::{
    backend::{Health, ModelState},
    metrics::Metrics,
    model::ModelId,
};

/// Shared by the devices' threads.
#[derive(Clone)]
pub(super) struct Board(Arc<Shared>);

struct Shared {
    devices: Vec<Device>,
    /// Of each device.
    states: Mutex<Vec<Health>>,
    told: watch::Sender<Health>,
    metrics: Metrics,
}

// === impl Board ===

impl Board {
    /// Devices that are all in the same state.
    pub(super) fn new(devices: &[Device], state: Health, metrics: Metrics) -> (Self, watch::Receiver<Health>) {
        let (told, health) = watch::channel(state.clone());
        let states = Mutex::new(vec![state; devices.len()]);
        (Self(Arc::new(Shared { devices: devices.to_vec(), states, told, metrics })), health)
    }

    /// A device's new state for a model.
    pub(super) fn tell(&self, device: usize, id: &ModelId, state: ModelState) {
        let mut states = self.0.states.lock();
        states[device].insert(id.clone(), state);
        self.publish(&states, id);
    }

    /// A device does nothing any more.
    pub(super) fn leave(&self, device: usize, why: &str) {
        let mut states = self.0.states.lock();
        let ids: Vec<_> = states[device].keys().cloned().collect();
        for id in &ids {
            states[device].insert(id.clone(), ModelState::Unavailable(why.to_owned()));
            self.publish(&states, id);
        }
    }

    /// Whether a device should leave a model's jobs to others: it has failed, and is not to try again yet, and another one
    /// has not.
    pub(super) fn is_others(&self, device: usize, id: &ModelId) -> bool {
        let now = Instant::now();
        let fails = |health: &Health| match health.get(id) {
            Some(ModelState::Failed { again, .. }) => now < *again,
            Some(ModelState::Unavailable(_)) | None => true,
            Some(ModelState::Ready | ModelState::Idle | ModelState::Loading) => false,
        };
        let states = self.0.states.lock();
        fails(&states[device]) && states.iter().any(|health| !fails(health))
    }

    fn publish(&self, states: &[Health], id: &ModelId) {
        let of_all = states.iter().filter_map(|health| health.get(id));
        let is_loaded = of_all.clone().any(|state| *state == ModelState::Ready);
        self.0.metrics.engine_model_loaded(id.shared(), is_loaded);
        for &device in &self.0.devices {
            let of_device = self.0.devices.iter().zip(states).filter(|(other, _)| **other == device);
            let failing = of_device.filter(|(_, health)| matches!(health.get(id), Some(ModelState::Failed { .. })));
            self.0.metrics.engine_failing(device.to_string(), id.shared(), failing.count());
        }
        let Some(best) = of_all.min_by_key(|state| rank(state)).cloned() else { return };
        self.0.told.send_if_modified(|health| health.insert(id.clone(), best.clone()) != Some(best));
    }
}

/// The better, the less; of two that have failed the one that is tried again first.
fn rank(state: &ModelState) -> (u8, Option<Instant>) {
    match state {
        ModelState::Ready => (0, None),
        ModelState::Loading => (1, None),
        ModelState::Idle => (2, None),
        ModelState::Failed { again, .. } => (3, Some(*again)),
        ModelState::Unavailable(_) => (4, None),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_best_of_all_devices_is_told_and_who_fails_leaves_the_work_to_others() {
        let id = ModelId::try_new("mine").unwrap();
        let metrics = Metrics::new();
        let (board, told) = Board::new(
            &[Device::Cpu, Device::Cuda(1)],
            Health::from([(id.clone(), ModelState::Idle)]),
            metrics.clone(),
        );
        let state = || told.borrow()[&id].clone();
        let failed = |after| ModelState::Failed { why: "no memory".to_owned(), again: Instant::now() + after };
        let (now, later) = (failed(Duration::ZERO), failed(Duration::from_mins(1)));
        board.tell(0, &id, later.clone());
        assert_eq!(state(), ModelState::Idle);
        assert!(board.is_others(0, &id) && !board.is_others(1, &id));
        let failing = |device: &str, count: usize| {
            let line = format!("latentgate_engine_failing{{device=\"{device}\",model=\"mine\"}} {count}");
            assert!(metrics.render().contains(&line), "{line}");
        };
        failing("cpu", 1);
        failing("cuda:1", 0);
        board.tell(1, &id, ModelState::Ready);
        assert_eq!(state(), ModelState::Ready);
        assert!(metrics.render().contains(r#"latentgate_engine_model_loaded{model="mine"} 1"#));
        // It may try again.
        board.tell(0, &id, now.clone());
        assert!(!board.is_others(0, &id));
        board.leave(1, "stopped");
        assert_eq!(state(), now);
        assert!(metrics.render().contains(r#"latentgate_engine_model_loaded{model="mine"} 0"#));
        // Nobody else can.
        board.tell(0, &id, later.clone());
        assert!(!board.is_others(0, &id) && !board.is_others(1, &id));
        board.leave(0, "stopped");
        assert_eq!(state(), ModelState::Unavailable("stopped".to_owned()));
    }
}
