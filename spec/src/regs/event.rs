//! How a unit raises its three interrupts: faults (FE...), invalidation (IE...) and page requests (PE...).
//!
//! The three sets of registers are alike: control, data, address, upper address. What is written there goes out as a
//! message when the event happens and is not masked. (VT-d 11.4.7, 11.4.9, 11.4.11)

/// IECTL or PECTL: as FECTL.
pub type EventControl = super::Fectl;

bitfields! {
    /// FEDATA, IEDATA or PEDATA.
    pub struct EventData(u32) {
        /// Data of the message.
        [15:0] imd, with_imd;
    }
}

bitfields! {
    /// FEADDR, IEADDR or PEADDR.
    pub struct EventAddress(u32) {
        /// Address of the message divided by four, its low part.
        [31:2] ma, with_ma;
    }
}

bitfields! {
    /// FEUADDR, IEUADDR or PEUADDR.
    pub struct EventUpperAddress(u32) {
        /// Address of the message, its high part.
        [31:0] mua, with_mua;
    }
}
