//! The colour of each label value, the same in pictures and in `.seg.nrrd` files.

/// Tones that stay apart on grey and for most forms of colour blindness.
const PALETTE: [[u8; 3]; 12] = [
    [230, 85, 75],
    [70, 160, 230],
    [80, 190, 100],
    [245, 185, 60],
    [165, 110, 215],
    [75, 205, 200],
    [240, 130, 180],
    [175, 205, 70],
    [200, 140, 95],
    [120, 135, 240],
    [250, 235, 120],
    [150, 190, 170],
];

/// Red, green and blue of a label value; value 0 is background and black.
pub fn of_value(value: u16) -> [u8; 3] {
    match value.checked_sub(1) {
        None => [0, 0, 0],
        Some(index) => PALETTE[usize::from(index) % PALETTE.len()],
    }
}
