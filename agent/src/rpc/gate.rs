//! Each call passes here before it is made: what the sandbox's policy does not allow is refused, whatever it says.
//!
//! It must not know what a call does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use ttrpc::asynchronous::{MethodHandler, Service, TtrpcContext};
use ttrpc::proto::{Request, Response};

use super::translate::status;
use crate::error::Error;
use crate::policy::Policy;

/// The policy of this sandbox, if one was set. Clones are the same.
#[derive(Clone, Default)]
pub struct Rules(Arc<Mutex<Option<Policy>>>);

impl Rules {
    /// From now on this one holds.
    pub fn set(&self, policy: Policy) {
        // Nothing panics while it holds it.
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(policy);
    }

    fn allow(&self, request: &str) -> bool {
        let policy = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        policy.as_ref().is_none_or(|policy| policy.allows(request))
    }
}

/// A method with a gate before it.
struct Gated {
    name: String,
    rules: Rules,
    method: Box<dyn MethodHandler + Send + Sync>,
}

#[async_trait]
impl MethodHandler for Gated {
    async fn handler(&self, context: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        if !self.rules.allow(&self.name) {
            // As a method of the service answers: an error of its handler is one of the connection to ttrpc.
            return match status(Error::Refused(self.name.clone())) {
                ttrpc::Error::RpcStatus(refused) => {
                    let mut response = Response::new();
                    response.set_status(refused);
                    Ok(response)
                }
                other => Err(other),
            };
        }
        self.method.handler(context, request).await
    }
}

/// The same services, behind these rules.
pub fn gated(services: HashMap<String, Service>, rules: &Rules) -> HashMap<String, Service> {
    let gate = |(name, method): (String, Box<dyn MethodHandler + Send + Sync>)| {
        let gated = Gated {
            // "Name" or "/package.Service/Name".
            name: name.rsplit('/').next().unwrap_or_default().to_owned(),
            rules: rules.clone(),
            method,
        };
        (name, Box::new(gated) as Box<dyn MethodHandler + Send + Sync>)
    };
    services
        .into_iter()
        .map(|(name, service)| {
            let service = Service {
                methods: service.methods.into_iter().map(gate).collect(),
                streams: service.streams,
            };
            (name, service)
        })
        .collect()
}
