//! Interfaces that appear in the pod's network when its virtual machine runs already, as Docker's do (since version 26) between a
//! container's creation and its start: plugged, and told to the guest, before the container starts.

use std::sync::Arc;
use std::time::Duration;

use agent_client::Agent;
use agent_protocol as p;
use slog::{Logger, info, warn};

use super::custody::Custody;
use super::ground::Look;
use crate::error::Result;

/// Looks once, and gives the guest what has appeared.
pub(super) async fn connect(
    look: Look,
    vm: Custody,
    agent: Arc<dyn Agent>,
    deadline: Duration,
    log: Logger,
) -> Result<()> {
    let appeared = look().await?;
    if appeared.devices.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = appeared
        .guest
        .interfaces
        .iter()
        .map(|i| i.name.as_str())
        .collect();
    info!(log, "interfaces have appeared in the pod's network"; "interfaces" => names.join(" "));
    for what in &appeared.left_out {
        warn!(log, "{} and is not in the guest", what);
    }
    for device in appeared.devices {
        vm.plug(device).await?;
    }
    let request = p::UpdateNetworkRequest {
        network: Some(appeared.guest).into(),
        ..Default::default()
    };
    agent.update_network(request, Some(deadline)).await?;
    Ok(())
}
