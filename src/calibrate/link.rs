//! What limits a link: the link as a whole, or what it gives to one connection.
//!
//! One figure cannot tell. If more connections together are faster than few, then few were held back each;
//! if they are not, the link was full.

/// How fast bytes came while so many connections brought them.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Point {
    /// Connections at once; an average may be a fraction.
    pub connections: f64,
    /// Bytes a second, all of them together.
    pub rate: f64,
}

/// What was the limit where it went fastest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    /// The link: more connections would not have been faster.
    Link,
    /// Each connection: the link may be faster than was seen.
    Connections,
    /// It was always the same number of connections, so nobody can say.
    Unknown,
}

/// A link as it was seen.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Link {
    /// Bytes a second that it gave at most.
    pub download: f64,
    /// Bytes a second that one connection gets at most, where that is less.
    pub per_connection: Option<f64>,
    /// Why it was not more.
    pub limit: Limit,
}

/// More connections are faster than few only if they are by this factor; below it is noise.
const FASTER: f64 = 1.25;

/// A link is full where connections together get less than this part of what they would get alone.
const FULL: f64 = 0.85;

/// What the points say of the link; `None` where there are none.
pub fn link(points: &[Point]) -> Option<Link> {
    let usable = || points.iter().filter(|point| point.connections > 0.0 && point.rate > 0.0);
    let few = usable().min_by(|a, b| a.connections.total_cmp(&b.connections))?;
    let best = usable().max_by(|a, b| a.rate.total_cmp(&b.rate))?;
    let most = usable().map(|point| point.connections).fold(0.0, f64::max);
    let each = few.rate / few.connections;
    let limit = if most < few.connections * FASTER {
        Limit::Unknown
    } else if best.rate < few.rate * FASTER || best.rate < each * best.connections * FULL {
        Limit::Link
    } else {
        Limit::Connections
    };
    // Few that are as fast as many are not held back.
    let held = limit != Limit::Unknown && best.rate >= few.rate * FASTER;
    Some(Link { download: best.rate, per_connection: held.then_some(each), limit })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(points: &[(f64, f64)]) -> Link {
        let points: Vec<_> =
            points.iter().map(|&(connections, rate)| Point { connections, rate }).collect();
        link(&points).unwrap()
    }

    #[test]
    fn a_limit_of_each_connection_is_told_from_one_of_the_link() {
        let both = of(&[(1.0, 25.0), (2.0, 50.0), (3.0, 60.0)]);
        assert_eq!(
            (both.download, both.per_connection, both.limit),
            (60.0, Some(25.0), Limit::Link)
        );
        let each = of(&[(3.0, 75.0), (1.0, 25.0)]);
        assert_eq!((each.per_connection, each.limit), (Some(25.0), Limit::Connections));
        let full = of(&[(1.0, 60.0), (3.0, 61.0)]);
        assert_eq!((full.download, full.per_connection, full.limit), (61.0, None, Limit::Link));
        let one = of(&[(3.0, 60.0)]);
        assert_eq!((one.download, one.per_connection, one.limit), (60.0, None, Limit::Unknown));
        assert_eq!(link(&[]), None);
        assert_eq!(link(&[Point { connections: 0.0, rate: 1.0 }]), None);
    }
}
