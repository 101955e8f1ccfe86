//! The shapes of the torso and their Hounsfield units.

use super::field::Field;
use crate::rng::Rng;

/// Rotation matrix (rows) of turns about x, y and z in radians, applied in this order.
pub(super) fn rotation([a, b, c]: [f64; 3]) -> [[f64; 3]; 3] {
    let ((sa, ca), (sb, cb), (sc, cc)) = (a.sin_cos(), b.sin_cos(), c.sin_cos());
    [
        [cc * cb, cc * sb * sa - sc * ca, cc * sb * ca + sc * sa],
        [sc * cb, sc * sb * sa + cc * ca, sc * sb * ca - cc * sa],
        [-sb, cb * sa, cb * ca],
    ]
}

/// An ellipsoid with random place, size and turn.
struct Ellipsoid {
    centre: [f64; 3],
    /// Rows: axes of the ellipsoid divided by its radii.
    frame: [[f64; 3]; 3],
    /// Anything further from the centre is outside.
    reach_mm: f64,
}

/// How much organs differ between patients.
struct Variation {
    shift_mm: f64,
    size: f64,
    turn_degrees: f64,
}

const ORGAN: Variation = Variation {
    shift_mm: 7.0,
    size: 0.16,
    turn_degrees: 16.0,
};
const STILL: Variation = Variation {
    shift_mm: 0.0,
    size: 0.0,
    turn_degrees: 0.0,
};

impl Ellipsoid {
    fn new(
        rng: &mut Rng,
        centre: [f64; 3],
        radii: [f64; 3],
        turn_degrees: [f64; 3],
        vary: &Variation,
    ) -> Self {
        let centre = centre.map(|mm| mm + rng.range(-1.0, 1.0) * vary.shift_mm);
        let size = 1.0 + rng.range(-1.0, 1.0) * vary.size;
        let radii = radii.map(|mm| mm * size * (1.0 + 0.5 * rng.range(-1.0, 1.0) * vary.size));
        let turn = rotation(
            turn_degrees.map(|d| (d + rng.range(-1.0, 1.0) * vary.turn_degrees).to_radians()),
        );
        let frame = std::array::from_fn(|a| std::array::from_fn(|w| turn[w][a] / radii[a]));
        Self {
            centre,
            frame,
            reach_mm: radii.iter().copied().fold(0.0, f64::max) * 1.3,
        }
    }

    /// 0 in the centre, 1 on the surface.
    fn level(&self, p: [f64; 3]) -> f64 {
        let d: [f64; 3] = std::array::from_fn(|w| p[w] - self.centre[w]);
        let square = d[0] * d[0] + d[1] * d[1] + d[2] * d[2];
        if square > self.reach_mm * self.reach_mm {
            return f64::INFINITY;
        }
        self.frame
            .iter()
            .map(|r| (r[0] * d[0] + r[1] * d[1] + r[2] * d[2]).powi(2))
            .sum::<f64>()
            .sqrt()
    }

    fn holds(&self, p: [f64; 3], bump: f64) -> bool {
        self.level(p) < 1.0 + bump
    }
}

/// Mean Hounsfield units of this patient in this contrast phase.
struct Tissue {
    fat: f64,
    muscle: f64,
    liver: f64,
    spleen: f64,
    cortex: f64,
    blood: f64,
    vein: f64,
    gut: f64,
    marrow: f64,
    cortical: f64,
    lung: f64,
}

const AIR: f64 = -1000.0;

/// One patient.
pub(super) struct Anatomy {
    deform: [Field; 3],
    deform_mm: f64,
    scale: [f64; 3],
    texture: Field,
    bumps: Field,
    tissue: Tissue,
    skin_mm: f64,
    body: Ellipsoid,
    cavity: Ellipsoid,
    liver: [Ellipsoid; 2],
    gallbladder: Ellipsoid,
    spleen: Ellipsoid,
    kidneys: [Ellipsoid; 2],
    sinuses: [Ellipsoid; 2],
    stomach: Ellipsoid,
    stomach_gas: Ellipsoid,
    heart: Ellipsoid,
    lungs: [Ellipsoid; 2],
    gut: Vec<(Ellipsoid, bool)>,
    aorta_mm: f64,
    vein_mm: f64,
    vessel_bend: Field,
    disc_phase_mm: f64,
}

impl Anatomy {
    pub fn new(rng: &Rng) -> Self {
        let mut place = rng.named("place");
        let mut organ =
            |centre, radii, turn| Ellipsoid::new(&mut place, centre, radii, turn, &ORGAN);
        let liver = [
            organ([-68.0, -8.0, 42.0], [66.0, 72.0, 62.0], [0.0, 12.0, 10.0]),
            organ([-8.0, -45.0, 58.0], [56.0, 34.0, 30.0], [0.0, 14.0, -8.0]),
        ];
        let gallbladder = organ([-52.0, -52.0, -12.0], [14.0, 20.0, 22.0], [20.0, 0.0, 0.0]);
        let spleen = organ([98.0, 36.0, 56.0], [24.0, 44.0, 46.0], [18.0, -8.0, 0.0]);
        let kidneys = [
            organ([-62.0, 44.0, -42.0], [26.0, 24.0, 52.0], [0.0, 12.0, 0.0]),
            organ([64.0, 46.0, -26.0], [26.0, 24.0, 53.0], [0.0, -12.0, 0.0]),
        ];
        let stomach = organ([58.0, -28.0, 48.0], [42.0, 36.0, 50.0], [0.0, 25.0, 0.0]);
        let heart = organ([24.0, -32.0, 138.0], [54.0, 46.0, 42.0], [0.0, 20.0, 15.0]);
        let mut still = rng.named("still");
        let mut fixed = |centre, radii| Ellipsoid::new(&mut still, centre, radii, [0.0; 3], &STILL);
        let sinuses = [0, 1].map(|side: usize| {
            let [x, y, z] = kidneys[side].centre;
            let inwards = if side == 0 { 11.0 } else { -11.0 };
            fixed([x + inwards, y, z], [11.0, 8.0, 22.0])
        });
        let [x, y, z] = stomach.centre;
        let stomach_gas = fixed([x, y - 18.0, z + 14.0], [20.0, 12.0, 18.0]);
        let lungs = [
            fixed([-72.0, 8.0, 175.0], [70.0, 84.0, 105.0]),
            fixed([76.0, 8.0, 175.0], [66.0, 84.0, 108.0]),
        ];
        let body = fixed([0.0, 0.0, 0.0], [168.0, 116.0, 4000.0]);
        let cavity = fixed([0.0, -8.0, 0.0], [138.0, 86.0, 4000.0]);
        let mut loops = rng.named("gut");
        let gut = (0..16)
            .map(|_| {
                let centre = [
                    loops.range(-95.0, 95.0),
                    loops.range(-70.0, 5.0),
                    loops.range(-190.0, -25.0),
                ];
                let radii = [
                    loops.range(14.0, 30.0),
                    loops.range(12.0, 22.0),
                    loops.range(12.0, 26.0),
                ];
                let turn = [loops.range(-60.0, 60.0), loops.range(-60.0, 60.0), 0.0];
                (
                    Ellipsoid::new(&mut loops, centre, radii, turn, &STILL),
                    loops.chance(0.35),
                )
            })
            .collect();
        let mut patient = rng.named("patient");
        let contrast = patient.uniform();
        let mut about = |mean: f64, spread: f64| mean + patient.range(-spread, spread);
        let tissue = Tissue {
            fat: about(-100.0, 12.0),
            muscle: about(58.0, 8.0),
            liver: about(62.0 + 45.0 * contrast, 16.0),
            spleen: about(54.0 + 62.0 * contrast, 14.0),
            cortex: about(44.0 + 110.0 * contrast, 16.0),
            blood: about(48.0 + 105.0 * contrast, 14.0),
            vein: about(46.0 + 85.0 * contrast, 22.0),
            gut: about(42.0, 18.0),
            marrow: about(185.0, 45.0),
            cortical: about(520.0, 120.0),
            lung: about(-840.0, 40.0),
        };
        let mut shape = rng.named("shape");
        Self {
            deform: std::array::from_fn(|w| Field::new(&mut shape.stream(w as u64), 130.0, 6)),
            deform_mm: shape.range(4.0, 7.5),
            scale: std::array::from_fn(|_| shape.range(0.92, 1.09)),
            texture: Field::new(&mut shape.stream(10), 18.0, 8),
            bumps: Field::new(&mut shape.stream(11), 34.0, 8),
            tissue,
            skin_mm: shape.range(9.0, 24.0),
            body,
            cavity,
            liver,
            gallbladder,
            spleen,
            kidneys,
            sinuses,
            stomach,
            stomach_gas,
            heart,
            lungs,
            gut,
            aorta_mm: shape.range(9.0, 13.0),
            vein_mm: shape.range(9.0, 13.5),
            vessel_bend: Field::new(&mut shape.stream(12), 150.0, 4),
            disc_phase_mm: shape.range(0.0, 34.0),
        }
    }

    /// Hounsfield units without noise, and the label, at a point in LPS millimetres.
    pub fn sample(&self, world: [f64; 3]) -> (f32, u16) {
        if self.body.level(world) > 1.25 {
            return (AIR as f32, 0);
        }
        let p: [f64; 3] = std::array::from_fn(|w| {
            world[w] / self.scale[w] + self.deform_mm * self.deform[w].at(world)
        });
        let (hu, label) = self.tissue_at(p);
        let texture = if hu > -200.0 {
            6.0 * self.texture.at(p)
        } else {
            0.0
        };
        ((hu + texture) as f32, label)
    }

    fn tissue_at(&self, p: [f64; 3]) -> (f64, u16) {
        let t = &self.tissue;
        let [x, y, z] = p;
        let body = self.body.level(p);
        if body > 1.0 {
            return (AIR, 0);
        }
        // Depth below the skin along the radius, near enough.
        let depth_mm = (1.0 - body) * 125.0;
        if depth_mm < 2.0 {
            return (t.muscle - 30.0, 0);
        }
        if depth_mm < self.skin_mm {
            return (t.fat, 0);
        }
        if let Some(found) = self.spine(p) {
            return found;
        }
        let cavity = self.cavity.level(p);
        if cavity > 1.0 {
            return (self.wall(p, cavity), 0);
        }
        let bump = 0.05 * self.bumps.at(p);
        if self.aorta(p) {
            return (t.blood, 5);
        }
        if self.vein(p) {
            return (t.vein, 0);
        }
        if self.liver.iter().any(|lobe| lobe.holds(p, bump)) {
            if self.gallbladder.holds(p, 0.0) {
                return (12.0, 0);
            }
            // Vessels in the liver: the texture at another scale, thin where it crosses zero.
            let vessel = self.bumps.at([y * 1.7, z * 1.7, x * 1.7]).abs() < 0.06;
            return (
                if vessel {
                    t.liver + 0.4 * (t.vein - t.liver)
                } else {
                    t.liver
                },
                1,
            );
        }
        if self.gallbladder.holds(p, 0.0) {
            return (12.0, 0);
        }
        for side in 0..2 {
            if self.kidneys[side].holds(p, 0.6 * bump) {
                if self.sinuses[side].holds(p, bump) {
                    return (t.fat + 40.0, 0);
                }
                let medulla = self.kidneys[side].level(p) < 0.72;
                return (
                    if medulla { t.cortex - 22.0 } else { t.cortex },
                    3 + side as u16,
                );
            }
        }
        if self.spleen.holds(p, bump) {
            return (t.spleen, 2);
        }
        if self.stomach.holds(p, bump) {
            return (
                if self.stomach_gas.holds(p, bump) {
                    AIR + 50.0
                } else {
                    t.gut
                },
                0,
            );
        }
        if self.heart.holds(p, bump) {
            return (0.5 * (t.blood + t.muscle), 0);
        }
        if self.lungs.iter().any(|lung| lung.holds(p, 0.0)) {
            let vessel = self.bumps.at(p.map(|mm| mm * 2.1)) > 1.55;
            return (if vessel { 30.0 } else { t.lung }, 0);
        }
        // Psoas muscles beside the spine.
        for side in [-1.0, 1.0] {
            let (dx, dy) = ((x - side * 42.0) / 17.0, (y - 58.0) / 19.0);
            if z < -20.0 && dx * dx + dy * dy < 1.0 + bump {
                return (t.muscle, 0);
            }
        }
        for (loop_, gas) in &self.gut {
            let level = loop_.level(p);
            if level < 1.0 + bump {
                return (
                    if *gas && level < 0.7 {
                        AIR + 80.0
                    } else {
                        t.gut + 10.0 * bump
                    },
                    0,
                );
            }
        }
        (t.fat, 0)
    }

    /// Vertebrae with discs and canal; `None` elsewhere.
    fn spine(&self, [x, y, z]: [f64; 3]) -> Option<(f64, u16)> {
        let t = &self.tissue;
        let along = (z + self.disc_phase_mm).rem_euclid(34.0);
        let (dx, dy) = (x / 23.0, (y - 58.0) / 17.5);
        let square = dx * dx + dy * dy;
        if square < 1.0 {
            if along < 7.0 {
                return Some((88.0, 0));
            }
            let rim = square > 0.74 || !(9.5..=31.5).contains(&along);
            return Some((
                if rim {
                    0.45 * t.cortical + 0.55 * t.marrow
                } else {
                    t.marrow
                },
                6,
            ));
        }
        let canal = (x / 10.5).powi(2) + ((y - 84.0) / 8.5).powi(2);
        if canal < 1.0 {
            return Some((28.0, 0));
        }
        let arch = (x / 18.0).powi(2) + ((y - 84.0) / 14.0).powi(2) < 1.0;
        let spinous = x.abs() < 4.5 && (90.0..108.0).contains(&y) && along > 11.0 && along < 29.0;
        let transverse = (y - 82.0).abs() < 5.5 && x.abs() < 38.0 && along > 15.0 && along < 25.0;
        (arch && along > 9.0 || spinous || transverse).then_some((0.5 * (t.cortical + t.marrow), 6))
    }

    /// The wall around the cavity: muscle, with ribs above the navel.
    fn wall(&self, [x, y, z]: [f64; 3], cavity: f64) -> f64 {
        let t = &self.tissue;
        if z > -30.0 && (1.015..1.10).contains(&cavity) {
            // Ribs slope downwards from the spine to the front.
            let slope = z + 0.35 * y - 0.04 * x.abs();
            let along = slope.rem_euclid(30.0);
            if along < 11.0 && !(x.abs() < 30.0 && y < 0.0) {
                let rim = !(3.0..8.0).contains(&along) || !(1.03..1.085).contains(&cavity);
                return if rim { 0.6 * t.cortical } else { t.marrow };
            }
        }
        // Fat between the muscles.
        if self.bumps.at([x * 0.9, y * 0.9, z * 0.4]) > 1.35 {
            t.fat
        } else {
            t.muscle
        }
    }

    fn aorta(&self, [x, y, z]: [f64; 3]) -> bool {
        let bend = 4.0 * self.vessel_bend.at([0.0, 0.0, z]);
        let (dx, dy) = (x - 17.0 - bend, y - 30.0 + 0.02 * z);
        dx * dx + dy * dy < self.aorta_mm * self.aorta_mm
    }

    fn vein(&self, [x, y, z]: [f64; 3]) -> bool {
        let bend = 4.0 * self.vessel_bend.at([60.0, 0.0, z]);
        let (dx, dy) = ((x + 20.0 - bend) / 1.15, (y - 26.0 + 0.03 * z) * 1.1);
        z < 110.0 && dx * dx + dy * dy < self.vein_mm * self.vein_mm
    }
}
