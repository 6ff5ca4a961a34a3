//! Traffic control (`RTM_*QDISC`, `RTM_*TFILTER`): everything that one device receives is sent out of another.
//!
//! The filter is `u32` with no condition at all and the action `mirred`, because kernels have them that lack `matchall`,
//! and unlike a bridge they pass on every frame, and leave the devices' addresses alone.

use crate::error::Result;
use crate::message::{Nest, Request};
use crate::socket::{Mode, Socket};

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_NEWTFILTER: u16 = 44;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;

/// Handle and parent of the queueing discipline for what is received: there is one of its kind on a device.
const INGRESS_HANDLE: u32 = 0xffff_0000;
const TC_H_INGRESS: u32 = 0xffff_fff1;

/// A `struct tcmsg`.
fn body(index: u32, handle: u32, parent: u32, info: u32) -> [u8; 20] {
    let mut body = [0; 20];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&handle.to_ne_bytes());
    body[12..16].copy_from_slice(&parent.to_ne_bytes());
    body[16..20].copy_from_slice(&info.to_ne_bytes());
    body
}

impl Socket {
    /// Gives a device a queueing discipline for what it receives.
    ///
    /// # Errors
    /// The kernel's: EEXIST when it has one, ENOENT without the module.
    pub fn add_ingress(&mut self, index: u32) -> Result<()> {
        let request = Request::new(
            RTM_NEWQDISC,
            Mode::Create.flags(),
            &body(index, INGRESS_HANDLE, TC_H_INGRESS, 0),
        );
        self.request(request.with_text(TCA_KIND, "ingress"))
    }

    /// Takes it away, and its filters with it.
    ///
    /// # Errors
    /// The kernel's: ENODEV without the device, EINVAL or ENOENT when it has none.
    pub fn remove_ingress(&mut self, index: u32) -> Result<()> {
        let body = body(index, INGRESS_HANDLE, TC_H_INGRESS, 0);
        self.request(Request::new(RTM_DELQDISC, Mode::Change.flags(), &body))
    }

    /// Sends what `from` receives out of `to`. `from` has its queueing discipline.
    ///
    /// # Errors
    /// The kernel's: ENOENT without one of the modules.
    pub fn redirect(&mut self, from: u32, to: u32) -> Result<()> {
        const PRIORITY: u32 = 1;
        // The kernel reads the protocol in the order of the wire.
        let protocol = u32::from((libc::ETH_P_ALL as u16).to_be());
        let info = PRIORITY << 16 | protocol;
        let mirred = Nest::default().with(TCA_MIRRED_PARMS, &mirred(to));
        let action = Nest::default()
            .with_text(TCA_ACT_KIND, "mirred")
            .with_nest(TCA_ACT_OPTIONS, mirred);
        let options = Nest::default()
            .with(TCA_U32_SEL, &everything())
            .with_nest(TCA_U32_ACT, Nest::default().with_nest(1, action));
        let body = body(from, 0, INGRESS_HANDLE, info);
        let request = Request::new(RTM_NEWTFILTER, Mode::Create.flags(), &body)
            .with_text(TCA_KIND, "u32")
            .with_nest(TCA_OPTIONS, options);
        self.request(request)
    }
}

/// `struct tc_u32_sel` that ends the search and has no key.
fn everything() -> [u8; 16] {
    const TC_U32_TERMINAL: u8 = 1;
    let mut selector = [0; 16];
    selector[0] = TC_U32_TERMINAL;
    selector
}

/// `struct tc_mirred` that takes packets away and sends them out of `to`.
fn mirred(to: u32) -> [u8; 28] {
    const TC_ACT_STOLEN: u32 = 4;
    const TCA_EGRESS_REDIR: u32 = 1;
    let mut parameters = [0; 28];
    parameters[8..12].copy_from_slice(&TC_ACT_STOLEN.to_ne_bytes());
    parameters[20..24].copy_from_slice(&TCA_EGRESS_REDIR.to_ne_bytes());
    parameters[24..28].copy_from_slice(&to.to_ne_bytes());
    parameters
}
