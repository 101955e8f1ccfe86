//! Which Vulkan device is meant.

/// What kind of device it is, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A graphics card.
    Discrete,
    /// Part of the processor.
    Integrated,
    /// A share of a card in a virtual machine.
    Virtual,
    /// Something else.
    Other,
    /// A program that computes on the CPU, such as Mesa's lavapipe: for tests.
    Software,
}

/// One device in the system's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adapter {
    /// As its driver calls it.
    pub name: String,
    /// What it is.
    pub kind: Kind,
}

/// A chosen device: the `index`-th of its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chosen {
    /// Place among all devices.
    pub number: usize,
    /// What it is.
    pub kind: Kind,
    /// Place among those of its kind.
    pub index: usize,
}

/// Device `number`, or the best one when none is named.
pub fn choose(adapters: &[Adapter], number: Option<usize>) -> Result<Chosen, String> {
    if adapters.is_empty() {
        return Err(
            "there is no Vulkan device; install the Vulkan loader and the driver of your GPU (on Debian libvulkan1 and \
             mesa-vulkan-drivers; vulkaninfo shows what is there)"
                .into(),
        );
    }
    let best = || (0..adapters.len()).min_by_key(|&i| adapters[i].kind);
    let number = number.or_else(best).unwrap_or(0);
    let Some(adapter) = adapters.get(number) else {
        let list: Vec<String> = adapters
            .iter()
            .enumerate()
            .map(|(i, adapter)| format!("{i}: {}", adapter.name))
            .collect();
        return Err(format!(
            "there is no Vulkan device {number}; there are {}",
            list.join(", ")
        ));
    };
    let same = |other: &&Adapter| other.kind == adapter.kind;
    Ok(Chosen {
        number,
        kind: adapter.kind,
        index: adapters[..number].iter().filter(same).count(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_goes_before_software() {
        let order = [
            Kind::Discrete,
            Kind::Integrated,
            Kind::Virtual,
            Kind::Other,
            Kind::Software,
        ];
        assert!(order.is_sorted());
        let adapter = |name: &str, kind| Adapter {
            name: name.into(),
            kind,
        };
        let adapters = [
            adapter("llvmpipe", Kind::Software),
            adapter("card 1", Kind::Discrete),
            adapter("card 2", Kind::Discrete),
        ];
        let chosen = |number, kind, index| {
            Ok(Chosen {
                number,
                kind,
                index,
            })
        };
        assert_eq!(choose(&adapters, None), chosen(1, Kind::Discrete, 0));
        assert_eq!(choose(&adapters, Some(2)), chosen(2, Kind::Discrete, 1));
        assert_eq!(choose(&adapters, Some(0)), chosen(0, Kind::Software, 0));
        assert_eq!(choose(&adapters[..1], None), chosen(0, Kind::Software, 0));
        let told = choose(&adapters, Some(3)).unwrap_err();
        assert!(told.contains("1: card 1"), "{told}");
        let told = choose(&[], None).unwrap_err();
        assert!(told.contains("libvulkan1"), "{told}");
    }
}
