//! Why, in a code and in a sentence.
use super::machine::Rollout;
use super::Place;

impl Rollout {
    /// The state of the deployment in a sentence, with values and what to do.
    pub fn message(&self) -> String {
        self.head.message()
    }

    /// The one reason why a device is updating, or is not: a stable code, and the same in a sentence.
    pub fn explain(&self, _place: Place) -> (&'static str, String) {
        ("", String::new())
    }
}

impl super::Head {
    pub fn message(&self) -> String {
        String::new()
    }
}
