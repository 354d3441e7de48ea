//! Who is asked for what is not kept, model by model. It can change while the server runs: a run that has begun to ask goes
//! on by the list it began with.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::RwLock;

use crate::{backend::Backend, model::ModelId};

/// The backends of every model. Clones share them.
#[derive(Clone)]
pub struct Routes(Arc<RwLock<Arc<Policy>>>);

/// One choice of them. It does not change; another one replaces it.
pub struct Policy {
    /// In the order in which they are asked.
    pub by_model: BTreeMap<ModelId, Vec<Arc<dyn Backend>>>,
    /// Jobs waiting in a backend's queue from which the others are asked first.
    pub spill_at: usize,
}

impl Routes {
    /// By this policy.
    pub fn new(policy: Policy) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(policy))))
    }

    /// By another one from now on.
    pub fn replace(&self, policy: Policy) {
        *self.0.write() = Arc::new(policy);
    }

    pub(super) fn now(&self) -> Arc<Policy> {
        self.0.read().clone()
    }
}

impl Policy {
    pub(super) fn of(&self, model: &ModelId) -> &[Arc<dyn Backend>] {
        self.by_model.get(model).map_or(&[], Vec::as_slice)
    }
}
