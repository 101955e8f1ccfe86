//! What is asked of the windows of a scan, and how they are walked through on the host.

use std::ops::ControlFlow;
use std::time::Instant;

use super::mirrored::Mirrored;
use super::network::Forward;
use super::prepared::Prepared;
use super::windows;
use crate::model::clicks::GridClicks;
use crate::model::error::ModelError;

/// A prepared scan, and what its windows are asked.
pub struct Sliding<'a> {
    pub scan: &'a Prepared,
    /// Shown with the scan to a network that takes clicks.
    pub clicks: Option<GridClicks>,
    /// Classes, background included.
    pub classes: usize,
    /// For each class the one on the other side of the body, when the network is to be asked twice.
    pub mirror: Option<&'a [u8]>,
}

impl Sliding<'_> {
    /// The network's logits of one window; none when it holds only air.
    pub fn logits(&self, net: &dyn Forward, start: [isize; 3]) -> Option<Vec<f32>> {
        let clicks = self.clicks.as_ref();
        match self.mirror {
            Some(mirror) => {
                let net = Mirrored::new(net, mirror, self.scan.patch());
                self.scan.logits(&net, start, clicks)
            }
            None => self.scan.logits(net, start, clicks),
        }
    }
}

/// Labels of all windows together.
pub struct Blended {
    /// `[z, y, x]` of the output.
    pub labels: Vec<u16>,
    /// Seconds by stage, in order.
    pub stages: Vec<(&'static str, f64)>,
    /// Windows that went through the network.
    pub windows: usize,
    /// Windows that held only air.
    pub skipped: usize,
}

/// Window by window, blended on the host.
pub fn slide_on_host(
    net: &dyn Forward,
    sliding: &Sliding,
    on_window: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Blended, ModelError> {
    let start = Instant::now();
    let (scan, patch) = (sliding.scan, sliding.scan.patch());
    let weights = windows::gaussian(patch);
    let [zs, ys, xs] = scan.starts();
    let total = zs.len() * ys.len() * xs.len();
    let (mut done, mut skipped, mut finish_s) = (0, 0, 0.0);
    let mut blend = scan.blend(sliding.classes);
    for &z in &zs {
        let finish = Instant::now();
        blend.finish_below(z.max(0) as usize);
        finish_s += finish.elapsed().as_secs_f64();
        for (&y, &x) in ys.iter().flat_map(|y| xs.iter().map(move |x| (y, x))) {
            match sliding.logits(net, [z, y, x]) {
                Some(logits) => blend.add([z, y, x], patch, &logits, &weights),
                None => skipped += 1,
            }
            done += 1;
            if on_window(done, total).is_break() {
                return Err(ModelError::Stopped);
            }
        }
    }
    let network_s = start.elapsed().as_secs_f64() - finish_s;
    let finish = Instant::now();
    let labels = blend.into_labels();
    finish_s += finish.elapsed().as_secs_f64();
    Ok(Blended {
        labels,
        stages: vec![("network", network_s), ("finish", finish_s)],
        windows: total - skipped,
        skipped,
    })
}
