//! The laws. Each is run once per schedule.

pub mod cap;
pub mod flight;
pub mod journal;
pub mod near;
pub mod read;
pub mod task;
pub mod waiters;
