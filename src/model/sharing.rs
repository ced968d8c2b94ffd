//! Who gets how much of what is shared.
//!
//! A flow is work that goes on at a speed between 0 and 1, where 1 is what it would do alone. At speed
//! 1 it uses so much of the link, so many cores and so much of the disk. Speeds are raised together
//! until a flow reaches its own limit or a resource is used up, whose users stay where they are; the
//! others go on rising (max-min fairness by progressive filling, Bertsekas and Gallager, *Data
//! Networks*, 6.5.2).

/// Link (bytes a second), cores (number), disk (bytes a second).
pub(super) const RESOURCES: usize = 3;

/// Work that wants to go on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    /// Of each resource, at speed 1.
    pub(super) uses: [f64; RESOURCES],
    /// The highest speed, of at most 1.
    pub(super) limit: f64,
}

/// A resource of which no more than this part is left counts as used up: that is rounding.
const ROUNDING: f64 = 1e-9;

/// The speed of every flow. What they use is taken off `left`.
pub(super) fn share(flows: &[Flow], left: &mut [f64; RESOURCES]) -> Vec<f64> {
    let whole = *left;
    let mut speeds = vec![0.0; flows.len()];
    let mut rising: Vec<usize> = (0..flows.len()).collect();
    let mut level = 0.0;
    loop {
        rising.retain(|&i| {
            let uses = flows[i].uses;
            level < flows[i].limit && (0..RESOURCES).all(|r| uses[r] == 0.0 || left[r] > 0.0)
        });
        if rising.is_empty() {
            return speeds;
        }
        let together: [f64; RESOURCES] =
            std::array::from_fn(|r| rising.iter().map(|&i| flows[i].uses[r]).sum());
        let shared = (0..RESOURCES).filter(|&r| together[r] > 0.0).map(|r| left[r] / together[r]);
        let rise = shared.fold(f64::INFINITY, f64::min);
        let lowest = rising.iter().map(|&i| flows[i].limit).fold(f64::INFINITY, f64::min);
        let next = lowest.min(level + rise);
        for r in 0..RESOURCES {
            if left[r].is_infinite() {
                continue;
            }
            left[r] -= together[r] * (next - level);
            if left[r] <= whole[r] * ROUNDING {
                left[r] = 0.0;
            }
        }
        level = next;
        for &i in &rising {
            speeds[i] = level;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(link: f64, cores: f64, limit: f64) -> Flow {
        Flow { uses: [link, cores, 0.0], limit }
    }

    #[test]
    fn what_one_cannot_take_the_others_get() {
        let mut left = [90.0, f64::INFINITY, f64::INFINITY];
        let speeds =
            share(&[flow(90.0, 0.0, 0.1), flow(90.0, 0.0, 1.0), flow(90.0, 0.0, 1.0)], &mut left);
        let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(
            near(speeds[0], 0.1) && near(speeds[1], 0.45) && near(speeds[2], 0.45),
            "{speeds:?}"
        );
        assert!(near(left[0], 0.0));
    }

    #[test]
    fn a_used_up_resource_stops_only_its_users() {
        let mut left = [1.0, 1.0, f64::INFINITY];
        let speeds =
            share(&[flow(0.0, 1.0, 1.0), flow(0.0, 1.0, 1.0), flow(0.8, 0.0, 1.0)], &mut left);
        assert_eq!(speeds, [0.5, 0.5, 1.0]);
        assert!((left[0] - 0.2).abs() < 1e-9);
        assert_eq!(share(&[flow(0.0, 1.0, 1.0)], &mut left), [0.0], "nothing is left");
    }
}
