//! A scan that a person works on: another click asks the network only about the windows that see it.

use std::ops::ControlFlow;

use super::blend::Blend;
use super::prepared::Prepared;
use super::segment::Forward;
use super::windows;
use crate::imaging::Volume;
use crate::model::clicks::Click;
use crate::model::error::ModelError;
use crate::model::manifest::ModelDescription;

/// A prepared scan with the blended logits of its last clicks, all of them in memory.
pub struct OpenScan {
    prepared: Prepared,
    blend: Blend,
    clicks: Vec<Click>,
    /// Windows that went through the network, and windows that held only air.
    windows: [usize; 2],
}

impl OpenScan {
    /// Asks the network about every window.
    pub(super) fn new(
        net: &dyn Forward,
        model: &ModelDescription,
        scan: &Volume<f32>,
        clicks: &[Click],
        on_window: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Self, ModelError> {
        let prepared = Prepared::new(scan, model)?;
        let guidance = prepared.clicks(model, clicks)?;
        let mut blend = prepared.blend(model.network.class_num);
        let weights = windows::gaussian(model.patch);
        let places = places(&prepared);
        let mut windows = [0, 0];
        for (done, &place) in places.iter().enumerate() {
            match prepared.logits(net, place, guidance.as_ref()) {
                Some(logits) => {
                    blend.add(place, model.patch, &logits, &weights);
                    windows[0] += 1;
                }
                None => windows[1] += 1,
            }
            if on_window(done + 1, places.len()).is_break() {
                return Err(ModelError::Stopped);
            }
        }
        blend.relabel(0, usize::MAX);
        Ok(Self {
            prepared,
            blend,
            clicks: clicks.to_vec(),
            windows,
        })
    }

    /// Takes other clicks. Windows whose guidance changes are asked with the old and with the new clicks, and the blend gets
    /// the difference: that needs no other window, where asking anew would need all that overlap them.
    pub(super) fn update(
        &mut self,
        net: &dyn Forward,
        model: &ModelDescription,
        clicks: &[Click],
        on_window: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<usize, ModelError> {
        let [old, new] = [&self.clicks[..], clicks];
        let only_in = |one: &[Click], other: &[Click]| -> Vec<Click> {
            one.iter()
                .filter(|click| !other.contains(click))
                .copied()
                .collect()
        };
        let changed = [only_in(old, new), only_in(new, old)].concat();
        let [Some(old), Some(new), Some(changed)] = [
            self.prepared.clicks(model, old)?,
            self.prepared.clicks(model, new)?,
            self.prepared.clicks(model, &changed)?,
        ] else {
            // A model without clicks: there are none, and none came.
            return Ok(0);
        };
        let weights = windows::gaussian(model.patch);
        let mut places = places(&self.prepared);
        places.retain(|&place| changed.touch(place, model.patch));
        let mut asked = 0;
        for (done, &place) in places.iter().enumerate() {
            let [before, after] =
                [&old, &new].map(|clicks| self.prepared.logits(net, place, Some(clicks)));
            if let (Some(before), Some(mut difference)) = (before, after) {
                difference
                    .iter_mut()
                    .zip(before)
                    .for_each(|(new, old)| *new -= old);
                self.blend.change(place, model.patch, &difference, &weights);
                asked += 2;
            }
            if on_window(done + 1, places.len()).is_break() {
                return Err(ModelError::Stopped);
            }
        }
        let slices = places.iter().map(|place| place[0]);
        if let (Some(first), Some(last)) = (slices.clone().min(), slices.max()) {
            let last = last + model.patch[0] as isize;
            self.blend
                .relabel(first.max(0) as usize, last.max(0) as usize);
        }
        self.clicks = clicks.to_vec();
        Ok(asked)
    }

    /// Labels on the grid of the scan.
    pub fn labels(&self) -> Volume<u16> {
        self.prepared.back(self.blend.labels().to_vec())
    }

    /// The probability of a class for each voxel on the grid of the scan.
    pub fn probability(&self, class: u16) -> Volume<f32> {
        self.prepared
            .back(self.blend.probability(usize::from(class)))
    }

    /// Windows that went through the network when the scan was opened, and windows that held only air.
    pub fn windows(&self) -> [usize; 2] {
        self.windows
    }

    /// Bytes of memory that it holds.
    pub fn bytes(&self) -> usize {
        self.prepared.bytes() + self.blend.bytes()
    }
}

/// Where all windows stand.
fn places(prepared: &Prepared) -> Vec<[isize; 3]> {
    let [zs, ys, xs] = prepared.starts();
    let rows = zs.iter().flat_map(|&z| ys.iter().map(move |&y| (z, y)));
    rows.flat_map(|(z, y)| xs.iter().map(move |&x| [z, y, x]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::phantom::{PhantomOptions, torso};
    use crate::model::clicks::ClickGuidance;
    use crate::model::infer::segment;
    use crate::model::manifest::{Lineage, Preprocessing};
    use crate::model::{LabelSchema, PctNetConfig};

    /// A class is where its clicks are, and where voxels are bright; answers depend on the whole window.
    struct Bright;

    impl Forward for Bright {
        fn logits(&self, patch: Vec<f32>) -> Vec<f32> {
            let voxels = patch.len() / 4;
            let mean = patch[voxels..].iter().sum::<f32>() / voxels as f32;
            let channel = |c: usize| &patch[c * voxels..][..voxels];
            let own = |c: usize| {
                channel(1 + c)
                    .iter()
                    .zip(channel(0))
                    .map(move |(g, v)| 9.0 * g + v * c as f32 * 0.1 + mean)
            };
            (0..3).flat_map(own).collect()
        }
    }

    fn model() -> ModelDescription {
        let labels = LabelSchema::from_list("a,b").unwrap();
        let patch = [8, 16, 16];
        let mut network = PctNetConfig::pct_net_s(labels.class_count(), patch, 1);
        network.in_chns = ClickGuidance::channels(labels.class_count());
        ModelDescription {
            name: "test".to_owned(),
            network,
            labels,
            preprocessing: Preprocessing {
                spacing_mm: Some([6.0, 6.0, 6.0]),
                ..Preprocessing::default()
            },
            patch,
            clicks: Some(ClickGuidance::default()),
            trained: true,
            lineage: Lineage::made_by("trained"),
        }
    }

    #[test]
    fn clicks_one_after_the_other_give_what_all_at_once_give() {
        let options = PhantomOptions {
            shape: Some([22, 40, 44]),
            ..PhantomOptions::default()
        };
        let scan = torso(3, &options).scan;
        let model = model();
        let shape = scan.geometry.shape();
        let go_on = &mut |_: usize, _: usize| ControlFlow::Continue(());
        let click = |class, at: [usize; 3]| Click {
            class,
            voxel: std::array::from_fn(|a| at[a] * shape[a] / 100),
        };
        let sets = [
            vec![],
            vec![click(1, [50, 50, 50])],
            vec![click(1, [50, 50, 50]), click(2, [40, 60, 45])],
            vec![click(2, [40, 60, 45]), click(0, [55, 50, 50])],
            vec![],
        ];
        let mut open = OpenScan::new(&Bright, &model, &scan, &[], go_on).unwrap();
        let all = open.windows().iter().sum::<usize>();
        for clicks in sets {
            let asked = open.update(&Bright, &model, &clicks, go_on).unwrap();
            assert!(asked < 2 * all, "{asked} of {all}");
            let expected = segment(&Bright, &model, &scan, &clicks, go_on)
                .unwrap()
                .labels;
            assert!(open.labels() == expected, "{clicks:?}");
            for click in &clicks {
                let [z, y, x] = click.voxel;
                assert_eq!(
                    expected.voxels[(z * shape[1] + y) * shape[2] + x],
                    click.class,
                    "{click:?}"
                );
                let probability = open.probability(click.class);
                assert!(probability.voxels[(z * shape[1] + y) * shape[2] + x] > 0.5);
            }
        }
        assert_eq!(open.update(&Bright, &model, &[], go_on).unwrap(), 0);
        assert!(open.bytes() > scan.voxels.len());
    }

    #[test]
    fn clicks_on_a_tilted_scan_lie_where_they_were_made() {
        let options = PhantomOptions {
            shape: Some([22, 40, 44]),
            ..PhantomOptions::default()
        };
        let mut scan = torso(3, &options).scan;
        let (shape, mut steps) = (scan.geometry.shape(), scan.geometry.steps_lps_mm());
        // Slices that slide along the patient's y axis, as those of a tilted gantry do.
        steps[0][1] += 0.3 * scan.geometry.spacing_mm()[0];
        scan.geometry = crate::imaging::Geometry::new(shape, [0.0; 3], steps).unwrap();
        assert!(scan.geometry.is_sheared());
        let model = model();
        let go_on = &mut |_: usize, _: usize| ControlFlow::Continue(());
        let voxel = [shape[0] / 2, shape[1] / 2, shape[2] / 2];
        let clicks = [Click { class: 2, voxel }];
        let mut open = OpenScan::new(&Bright, &model, &scan, &[], go_on).unwrap();
        open.update(&Bright, &model, &clicks, go_on).unwrap();
        let labels = open.labels();
        assert!(labels.geometry == scan.geometry);
        let at = (voxel[0] * shape[1] + voxel[1]) * shape[2] + voxel[2];
        assert_eq!(labels.voxels[at], 2);
        assert!(open.probability(2).voxels[at] > 0.5);
        let at_once = segment(&Bright, &model, &scan, &clicks, go_on).unwrap();
        assert!(labels == at_once.labels);
    }

    #[test]
    fn clicks_that_cannot_be_are_refused() {
        let scan = torso(
            3,
            &PhantomOptions {
                shape: Some([10, 20, 20]),
                ..PhantomOptions::small()
            },
        )
        .scan;
        let mut model = model();
        let refused = |model: &ModelDescription, class, voxel| {
            let go_on = &mut |_: usize, _: usize| ControlFlow::Continue(());
            segment(&Bright, model, &scan, &[Click { class, voxel }], go_on)
                .err()
                .unwrap()
                .to_string()
        };
        assert!(refused(&model, 1, [10, 0, 0]).contains("(0, 0, 10) lies outside"));
        assert!(refused(&model, 3, [0, 0, 0]).contains("no class 3"));
        model.clicks = None;
        assert!(refused(&model, 1, [0, 0, 0]).contains("--clicks"));
    }
}
