//! The numbers of [`Rng`] on the device.

use cubecl::prelude::*;

use crate::rng::{GOLDEN, Rng};

/// Key and counter as words for the device, lower ones first.
pub fn stream(rng: &Rng) -> [u32; 4] {
    let [key, counter] = rng.state();
    [key, key >> 32, counter, counter >> 32].map(|part| part as u32)
}

/// Key and counter of [`stream`].
#[cube]
pub fn key_and_counter(stream: &Tensor<u32>) -> (u64, u64) {
    let key = u64::cast_from(stream[0]) | (u64::cast_from(stream[1]) << 32u64);
    let counter = u64::cast_from(stream[2]) | (u64::cast_from(stream[3]) << 32u64);
    (key, counter)
}

#[cube]
fn mix(bits: u64) -> u64 {
    let z = (bits ^ (bits >> 30u64)) * 0xbf58476d1ce4e5b9u64;
    let z = (z ^ (z >> 27u64)) * 0x94d049bb133111ebu64;
    z ^ (z >> 31u64)
}

/// Number `counter` of the stream `key`, as `Rng::at` gives it.
#[cube]
pub fn draw(key: u64, counter: u64) -> u64 {
    mix(mix(key + counter * GOLDEN) ^ key)
}
