//! What the shelf is made of: twelve L1, each with two L2 and five leaves.

/// One L1.
pub(super) struct Top {
    pub name: &'static str,
    /// The L2 of the durable thing and its accessories, and that of the other two leaves.
    pub groups: [&'static str; 2],
    /// Leaf and noun in the order of [`Role`].
    pub leaves: [(&'static str, &'static str); LEAVES],
    pub brands: [&'static str; 5],
    /// The adjective at a place is what people of that stage of life like.
    pub adjectives: [&'static str; 4],
}

/// Leaves of an L1.
pub(super) const LEAVES: usize = 5;
/// L1.
pub(super) const TOP_COUNT: usize = 12;
/// Price level of a title, its first word.
pub(super) const TIERS: [&str; 2] = ["basic", "premium"];

/// What a leaf is to people; each L1 has one leaf of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Bought once; its accessories follow.
    Durable,
    /// Its first accessory.
    First,
    /// Its second.
    Second,
    /// Runs out.
    Consumable,
    /// Bought at its time.
    Seasonal,
}

impl Role {
    /// All leaves of the role, by L1.
    pub(super) fn leaves(self) -> Vec<usize> {
        (0..TOP_COUNT).map(|top| self.of(top)).collect()
    }

    /// The role's leaf of an L1.
    pub(super) fn of(self, top: usize) -> usize {
        top * LEAVES + self as usize
    }

    /// Whether a leaf has the role.
    pub(super) fn is(self, leaf: usize) -> bool {
        leaf % LEAVES == self as usize
    }
}

pub(super) const TOPS: [Top; TOP_COUNT] = [
    Top {
        name: "Outdoor",
        groups: ["Camping", "Trail"],
        leaves: [
            ("Tents", "tent"),
            ("Sleeping-bags", "sleeping-bag"),
            ("Camp-stoves", "camp-stove"),
            ("Energy-gels", "energy-gel"),
            ("Rain-jackets", "rain-jacket"),
        ],
        brands: ["Veldt", "Northrim", "Kestra", "Pinewalk", "Alpenzo"],
        adjectives: ["rugged", "light", "compact", "waterproof"],
    },
    Top {
        name: "Kitchen",
        groups: ["Coffee", "Pantry"],
        leaves: [
            ("Espresso-machines", "espresso-machine"),
            ("Grinders", "grinder"),
            ("Mugs", "mug"),
            ("Coffee-beans", "coffee"),
            ("Ice-makers", "ice-maker"),
        ],
        brands: ["Brassano", "Oakpan", "Melleri", "Tavola", "Simmerling"],
        adjectives: ["steel", "copper", "classic", "slow"],
    },
    Top {
        name: "Electronics",
        groups: ["Photography", "Supplies"],
        leaves: [
            ("Cameras", "camera"),
            ("Lenses", "lens"),
            ("Tripods", "tripod"),
            ("Printer-ink", "ink"),
            ("Power-banks", "power-bank"),
        ],
        brands: ["Zenvolt", "Auralis", "Pixelon", "Corewave", "Lumitek"],
        adjectives: ["wireless", "slim", "silent", "pro"],
    },
    Top {
        name: "Beauty",
        groups: ["Hair", "Skin"],
        leaves: [
            ("Hair-dryers", "hair-dryer"),
            ("Straighteners", "straightener"),
            ("Brushes", "brush"),
            ("Face-creams", "face-cream"),
            ("Sunscreens", "sunscreen"),
        ],
        brands: ["Florelle", "Miravine", "Petalune", "Dermora", "Rosalba"],
        adjectives: ["gentle", "floral", "matte", "vitamin"],
    },
    Top {
        name: "Baby",
        groups: ["Travel-gear", "Care"],
        leaves: [
            ("Strollers", "stroller"),
            ("Car-seats", "car-seat"),
            ("Carriers", "carrier"),
            ("Diapers", "diaper"),
            ("Baby-blankets", "blanket"),
        ],
        brands: ["Cubbly", "Nidoo", "Tinysteps", "Lullabee", "Snugget"],
        adjectives: ["soft", "bamboo", "organic", "quilted"],
    },
    Top {
        name: "Home",
        groups: ["Living", "Cleaning"],
        leaves: [
            ("Sofas", "sofa"),
            ("Rugs", "rug"),
            ("Lamps", "lamp"),
            ("Detergents", "detergent"),
            ("Heaters", "heater"),
        ],
        brands: ["Havenly", "Lindqvist", "Mossgate", "Tessaro", "Quillon"],
        adjectives: ["oak", "linen", "brass", "velvet"],
    },
    Top {
        name: "Garden",
        groups: ["Patio", "Planting"],
        leaves: [
            ("Grills", "grill"),
            ("Grill-tools", "grill-tool"),
            ("Parasols", "parasol"),
            ("Fertilisers", "fertiliser"),
            ("Seeds", "seed"),
        ],
        brands: ["Fernwick", "Terravo", "Budleaf", "Greenhollow", "Loamly"],
        adjectives: ["hardy", "teak", "folding", "heirloom"],
    },
    Top {
        name: "Fashion",
        groups: ["Travel", "Wear"],
        leaves: [
            ("Luggage", "suitcase"),
            ("Backpacks", "backpack"),
            ("Wallets", "wallet"),
            ("Socks", "sock"),
            ("Coats", "coat"),
        ],
        brands: ["Marlowe", "Sorrento", "Indigra", "Velane", "Harrowby"],
        adjectives: ["canvas", "suede", "pleated", "roomy"],
    },
    Top {
        name: "Sports",
        groups: ["Strength", "Training"],
        leaves: [
            ("Benches", "bench"),
            ("Dumbbells", "dumbbell"),
            ("Kettlebells", "kettlebell"),
            ("Protein", "powder"),
            ("Swimwear", "swimsuit"),
        ],
        brands: ["Ironcrest", "Flexora", "Pacer", "Voltgym", "Strivo"],
        adjectives: ["rubber", "adjustable", "vanilla", "racing"],
    },
    Top {
        name: "Pets",
        groups: ["Aquariums", "Feeding"],
        leaves: [
            ("Tanks", "tank"),
            ("Filters", "filter"),
            ("Pumps", "pump"),
            ("Pet-food", "kibble"),
            ("Dog-coats", "dog-coat"),
        ],
        brands: ["Pawsley", "Whiskora", "Barkly", "Finnow", "Tailwise"],
        adjectives: ["planted", "cosy", "sisal", "tropical"],
    },
    Top {
        name: "Books",
        groups: ["Reading", "Print"],
        leaves: [
            ("E-readers", "e-reader"),
            ("Reading-lights", "reading-light"),
            ("Covers", "cover"),
            ("Magazines", "magazine"),
            ("Planners", "planner"),
        ],
        brands: ["Inkwell", "Larkspur", "Foxglove", "Meridian", "Papertrail"],
        adjectives: ["illustrated", "annotated", "short", "gripping"],
    },
    Top {
        name: "Hobbies",
        groups: ["Guitar", "Craft"],
        leaves: [
            ("Guitars", "guitar"),
            ("Amplifiers", "amplifier"),
            ("Straps", "strap"),
            ("Strings", "string"),
            ("Yarn", "skein"),
        ],
        brands: ["Tonewood", "Stitchery", "Craftly", "Gambit", "Brushmark"],
        adjectives: ["acoustic", "chunky", "maple", "nickel"],
    },
];
