//! Callbacks that are to be sent.

use faena_domain::CallNum;

use super::requests;
use crate::records::CallbackJob;

requests! {
    /// Whether any callback is due.
    Read CallbacksDue = "callback.due" by [Api] -> bool {}
    /// Takes callbacks that are due, for as long as a try may take.
    Write CallbacksTake = "callback.take" by [Api] -> Vec<CallbackJob> {
        /// How many at most.
        limit: u32,
    }
    /// Tells how a callback went.
    Write CallbackFinish = "callback.finish" by [Api] -> () {
        /// The call.
        num: CallNum,
        /// Which try it was.
        tries: u32,
        /// What went wrong; none where it was delivered.
        error: Option<String>,
    }
    /// Gives back a callback that was taken and not tried, because its host is busy.
    Write CallbackPostpone = "callback.postpone" by [Api] -> () {
        /// The call.
        num: CallNum,
        /// Which try it would have been.
        tries: u32,
    }
}
