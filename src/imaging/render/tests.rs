use super::*;
use crate::imaging::Geometry;
use crate::imaging::phantom::{ORGANS, PhantomOptions, torso};

fn names() -> Vec<(u16, String)> {
    ORGANS
        .iter()
        .enumerate()
        .map(|(n, name)| (n as u16 + 1, (*name).to_owned()))
        .collect()
}

fn decode(bytes: &[u8]) -> (usize, usize, Vec<u8>) {
    let mut reader = png::Decoder::new(std::io::Cursor::new(bytes))
        .read_info()
        .unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    (info.width as usize, info.height as usize, pixels)
}

#[test]
fn the_picture_does_not_depend_on_the_stored_order() {
    let mut pictures = Vec::new();
    let case = torso(
        5,
        &PhantomOptions {
            shape: Some([20, 24, 26]),
            random_orientation: false,
            ..PhantomOptions::default()
        },
    );
    for number in [0, 13, 47] {
        let turn = orientation::any_of_48(&case.scan.geometry, number);
        let (scan, label) = (turn.apply(&case.scan), turn.apply(&case.label));
        pictures.push(
            overlay_png(
                &scan,
                &[Row {
                    title: "after",
                    label: &label,
                }],
                &names(),
                Window::ABDOMEN,
            )
            .unwrap(),
        );
    }
    assert_eq!(pictures[0], pictures[1]);
    assert_eq!(pictures[0], pictures[2]);
}

#[test]
fn the_right_of_the_patient_is_on_the_left_and_the_head_is_up() {
    let steps = [[0.0, 0.0, 2.0], [0.0, 2.0, 0.0], [2.0, 0.0, 0.0]];
    let geometry = Geometry::new([30, 30, 30], [0.0; 3], steps).unwrap();
    let scan = Volume::new(geometry, vec![-1000.0; 27000]).unwrap();
    let mut label = Volume::new(geometry, vec![0; 27000]).unwrap();
    for z in 20..28 {
        for y in 10..20 {
            for x in 2..8 {
                label.voxels[(z * 30 + y) * 30 + x] = 1;
            }
        }
    }
    let (width, _, pixels) = decode(
        &overlay_png(
            &scan,
            &[Row {
                title: "",
                label: &label,
            }],
            &[],
            Window::ABDOMEN,
        )
        .unwrap(),
    );
    let coloured = |left: usize, top: usize| {
        let at = (top * width + left) * 3;
        pixels[at..at + 3] != [0, 0, 0]
    };
    // Panels are 420 pixels; x 2..8 of 30 lies at pixels 28..112, z 20..28 upside down at 28..140.
    let (axial, coronal, top) = (GAP, 2 * GAP + 420, GAP + LINE);
    assert!(coloured(axial + 70, top + 210) && !coloured(axial + 350, top + 190));
    assert!(coloured(coronal + 70, top + 84) && !coloured(coronal + 70, top + 336));
}

#[test]
fn rows_must_be_on_the_grid_of_the_scan() {
    let small = torso(
        1,
        &PhantomOptions {
            shape: Some([8, 8, 8]),
            ..PhantomOptions::small()
        },
    );
    let other = torso(
        1,
        &PhantomOptions {
            shape: Some([8, 8, 9]),
            ..PhantomOptions::small()
        },
    );
    let row = Row {
        title: "before",
        label: &other.label,
    };
    assert!(matches!(
        overlay_png(&small.scan, &[row], &[], Window::ABDOMEN),
        Err(RenderError::Grid(_))
    ));
    assert!(matches!(
        overlay_png(&small.scan, &[], &[], Window::ABDOMEN),
        Err(RenderError::NoRows)
    ));
}

#[test]
fn comparison_has_one_row_per_label_map() {
    let case = torso(2, &PhantomOptions::small());
    let rows = [
        Row {
            title: "before",
            label: &case.label,
        },
        Row {
            title: "reference",
            label: &case.label,
        },
    ];
    let one = decode(&overlay_png(&case.scan, &rows[..1], &names(), Window::ABDOMEN).unwrap());
    let two = decode(&overlay_png(&case.scan, &rows, &names(), Window::ABDOMEN).unwrap());
    assert_eq!(one.0, two.0);
    assert!(two.1 > one.1 + 300);
}
