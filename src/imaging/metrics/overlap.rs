//! Overlap of two label maps.

/// Dice coefficient of one class, `2|A∩B| / (|A| + |B|)`; `None` when it is in neither map, which is neither agreement
/// nor error and must be counted apart.
pub fn dice(a: &[u16], b: &[u16], class: u16) -> Option<f64> {
    dice_per_class(a, b, usize::from(class) + 1)[usize::from(class)]
}

/// [`dice`] of the classes `0..classes` in one pass over the voxels. Both maps have the same grid.
pub fn dice_per_class(a: &[u16], b: &[u16], classes: usize) -> Vec<Option<f64>> {
    let (mut both, mut sizes) = (vec![0u64; classes], vec![0u64; classes]);
    for (&a, &b) in a.iter().zip(b) {
        for label in [a, b] {
            if let Some(size) = sizes.get_mut(usize::from(label)) {
                *size += 1;
            }
        }
        if a == b
            && let Some(count) = both.get_mut(usize::from(a))
        {
            *count += 1;
        }
    }
    let dice = |(both, size): (u64, u64)| (size > 0).then(|| 2.0 * both as f64 / size as f64);
    both.into_iter().zip(sizes).map(dice).collect()
}

/// Mean of the defined values; `None` when there is none.
pub fn mean(values: impl IntoIterator<Item = Option<f64>>) -> Option<f64> {
    let (sum, count) = values
        .into_iter()
        .flatten()
        .fold((0.0, 0usize), |(sum, count), value| {
            (sum + value, count + 1)
        });
    (count > 0).then(|| sum / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let a = [0, 1, 1, 2, 0, 0];
        let b = [0, 1, 2, 2, 0, 1];
        assert_eq!(dice(&a, &b, 1), Some(0.5));
        assert_eq!(dice(&a, &b, 2), Some(2.0 / 3.0));
        assert_eq!(dice(&a, &b, 3), None);
        assert_eq!(
            dice_per_class(&a, &b, 4)[1..],
            [Some(0.5), Some(2.0 / 3.0), None]
        );
    }

    #[test]
    fn means_leave_out_what_is_undefined() {
        assert_eq!(mean([Some(1.0), None, Some(0.0)]), Some(0.5));
        assert_eq!(mean([None, None]), None);
    }
}
