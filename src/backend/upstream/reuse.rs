//! Whether a request went out on a connection that had been used before.
//!
//! A server closes connections that are idle, and a request may cross that on its way: it is lost without a byte of an
//! answer, and nothing is wrong with the endpoint. On a connection made for it, the same loss is the endpoint's. The
//! client does not tell the two apart in its errors, but it connects within the request's own future; so a layer around
//! its connector leaves word there.

use std::{
    cell::Cell,
    task::{Context, Poll},
};

use tower::{Layer, Service};

tokio::task_local! {
    /// Whether a connection was made for the request.
    static CONNECTED: Cell<bool>;
}

/// Leaves word of new connections.
#[derive(Clone, Copy)]
pub(super) struct Noting;

/// A connector that does.
#[derive(Clone)]
pub(super) struct Noted<S>(S);

/// Runs a request; tells besides whether it went out on a used connection.
pub(super) async fn watch<T>(request: impl Future<Output = T>) -> (T, bool) {
    let watched = async {
        let result = request.await;
        (result, !CONNECTED.with(Cell::get))
    };
    CONNECTED.scope(Cell::new(false), watched).await
}

impl<S> Layer<S> for Noting {
    type Service = Noted<S>;

    fn layer(&self, inner: S) -> Noted<S> {
        Noted(inner)
    }
}

impl<S: Service<R>, R> Service<R> for Noted<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: R) -> S::Future {
        // Connections that are made outside of any request are none's.
        CONNECTED.try_with(|connected| connected.set(true)).ok();
        self.0.call(request)
    }
}
