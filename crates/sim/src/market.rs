//! The market: prices of four coins, each a geometric random walk, one message a second each.

use catchment_types::Timestamp;
use rand::rngs::StdRng;

use crate::Message;
use crate::random::{normal, round, source};

/// Relative change of a price in one second, standard deviation; about 50 % a year.
const CHANGE_PER_SECOND: f64 = 9e-5;

struct Coin {
    data_id: u32,
    name: &'static str,
    price: f64,
    digits: i32,
}

/// The world.
pub struct Market {
    source: StdRng,
    coins: [Coin; 4],
}

impl Market {
    /// A market at its opening prices.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let coin = |data_id, name, price, digits| Coin { data_id, name, price, digits };
        Self {
            source: source(seed, 100),
            coins: [
                coin(150, "BTC", 39_950.0, 2),
                coin(151, "ETH", 2_760.0, 2),
                coin(152, "DOT", 18.2, 4),
                coin(153, "BTT", 0.002_1, 8),
            ],
        }
    }

    /// The messages of the second `now`: `{"data_id":150,"name":"BTC","timestamp":1645270401,"price":39950.12}`, the time
    /// in whole seconds, the price in US dollars. Device is the coin, type is `demo`.
    pub fn step(&mut self, now: Timestamp) -> Vec<Message> {
        let seconds = now.as_micros().div_euclid(Timestamp::SECOND);
        let source = &mut self.source;
        let message = |coin: &mut Coin| {
            coin.price *= (CHANGE_PER_SECOND * normal(source)).exp();
            let document = serde_json::json!({
                "data_id": coin.data_id,
                "name": coin.name,
                "timestamp": seconds,
                "price": round(coin.price, coin.digits),
            });
            let payload = document.to_string().into_bytes();
            Message { device_id: coin.name.to_owned(), event_type: "demo", payload }
        };
        self.coins.iter_mut().map(message).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_documented_form() {
        let mut market = Market::new(1);
        let messages = market.step(Timestamp(1_645_270_401_900_000));
        assert_eq!(messages.len(), 4);
        assert_eq!(messages[0].topic(), "devices/BTC/demo");
        let text = String::from_utf8(messages[0].payload.clone()).unwrap();
        assert!(
            text.starts_with(r#"{"data_id":150,"name":"BTC","timestamp":1645270401,"price":39"#),
            "{text}"
        );
    }

    #[test]
    fn prices_stay_prices() {
        let mut market = Market::new(2);
        for second in 0..86_400 {
            market.step(Timestamp(second * Timestamp::SECOND));
        }
        assert!(market.coins.iter().all(|coin| coin.price.is_finite() && coin.price > 0.0));
        assert!((20_000.0..80_000.0).contains(&market.coins[0].price), "{}", market.coins[0].price);
    }
}
