//! Which roles a certificate needs for what: the table that every server asks (design §8).
//!
//! The cluster that a certificate is for is checked when two sides greet each other, before any of this.

use super::service::Service;
use super::tls::{PeerIdentity, Role};
use crate::error::ControlError;
use crate::messages::control::{BundleRequest, Change, ControlRequest};

/// The roles of which one is needed to connect for a service. What else a message needs is asked for each.
pub fn of_service(service: Service) -> &'static [Role] {
    match service {
        // Nodes have nothing to infer; a gateway does, for its tenants.
        Service::Infer => &[Role::Client, Role::Gateway],
        Service::Control => &Role::ALL,
        Service::Raft => &[Role::Coordinator],
        Service::Bundle => &[Role::Coordinator, Role::Worker, Role::Operator],
    }
}

/// The roles of which one is needed for a request to the control plane. That a worker asks for itself alone is checked where
/// its name and id are known.
pub fn of_control(request: &ControlRequest) -> &'static [Role] {
    match request {
        ControlRequest::Change { change, .. } => of_change(change),
        ControlRequest::Heartbeat(_) => &[Role::Worker],
        ControlRequest::Reconfigure(_) | ControlRequest::Snapshot => &[Role::Operator],
        // Whoever is of the cluster may know its state: clients route by it, nodes host by it, operators look at it. It
        // tells names, addresses and counts; no tenant's data.
        ControlRequest::Query(_) | ControlRequest::Watch { .. } => &Role::ALL,
    }
}

fn of_change(change: &Change) -> &'static [Role] {
    match change {
        Change::ReservePush { .. }
        | Change::CommitPush { .. }
        | Change::StartRollout { .. }
        | Change::Promote { .. }
        | Change::Abort { .. }
        | Change::Undo { .. }
        | Change::SetLabel { .. }
        | Change::RemoveLabel { .. }
        | Change::Hold { .. }
        | Change::Retain { .. } => &[Role::Operator],
        Change::Join { .. } | Change::Drain { .. } => &[Role::Worker],
    }
}

/// The roles of which one is needed for a request for files.
pub fn of_bundle(request: &BundleRequest) -> &'static [Role] {
    match request {
        BundleRequest::List { .. } | BundleRequest::Get { .. } | BundleRequest::Missing { .. } => {
            &[Role::Coordinator, Role::Worker, Role::Operator]
        }
        BundleRequest::Put { .. } | BundleRequest::Seal { .. } => &[Role::Operator],
    }
}

/// Whether the bearer of a certificate has any of the roles.
///
/// # Errors
/// [`ControlError::Forbidden`], naming them.
pub fn check(needed: &[Role], peer: &PeerIdentity) -> Result<(), ControlError> {
    if peer.has_any(needed) {
        return Ok(());
    }
    let needed: Vec<_> = needed.iter().map(|role| role.name()).collect();
    Err(forbidden(needed.join(" or "), peer))
}

/// The refusal of somebody who lacks what is `needed`.
pub fn forbidden(needed: String, peer: &PeerIdentity) -> ControlError {
    ControlError::Forbidden { needed, name: peer.name.to_string(), roles: peer.roles_text() }
}
