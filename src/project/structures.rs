//! What the structures of the project look like and mean, for clients that show them.

use serde::Serialize;

use super::Project;
use crate::imaging::color;
use crate::imaging::terminology::{self, Terminology};

/// One structure of the project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Structure {
    /// Its name.
    pub name: String,
    /// Its value in label maps.
    pub value: u16,
    /// Its colour, the same as in pictures and `.seg.nrrd` files.
    pub color_rgb: [u8; 3],
    /// What it means; none for a name that is not known here.
    pub terminology: Option<Terminology>,
}

impl Project {
    /// The structures in the order of their values.
    pub fn structures(&self) -> Vec<Structure> {
        let values = self.schema().values().into_iter();
        values
            .map(|(value, name)| Structure {
                value,
                color_rgb: color::of_value(value),
                terminology: terminology::of_name(&name),
                name,
            })
            .collect()
    }
}
