"""Guesses of the language of a text."""

import pytest

from src.data import languages
from src.data.languages import LANGUAGES, UNDETERMINED, LanguageSampler, guess_language

# A sentence or two in each language.
TEXTS = {
    "English": "It was the best of times, and it was the worst of times for all of us in the city.",
    "German": "Als der Mann am Morgen erwachte, war er nicht mehr der, den die Leute gekannt",
    "French": "Il y avait dans la ville une maison que les enfants ne voulaient pas voir le soir.",
    "Spanish": "En un lugar de la Mancha, de cuyo nombre no quiero acordarme, vivía un hidalgo.",
    "Portuguese": "O menino não queria ir à escola, mas a mãe disse que os amigos dele estavam lá.",
    "Italian": "Nel mezzo del cammino di nostra vita mi ritrovai per una selva oscura, che la",
    "Dutch": "Het was een koude dag in de stad, en de man liep met zijn hond langs het water van",
    "Swedish": "Det var en gång en gammal man som inte hade någon att tala med på den långa vägen.",
    "Danish": "Der var engang en gammel mand, som ikke havde nogen at tale med på den lange vej af",
    "Norwegian": "Det var en gang en gammel mann som ikke hadde noen å snakke med på den lange",
    "Finnish": "Se oli kaunis päivä, ja hän ei tiennyt, että kaikki olisi ohi niin pian kuin he",
    "Polish": "Nie wiem, co to jest, ale on był już w domu i powiedział, że nie ma się z czego",
    "Czech": "Byl jednou jeden král, který se bál, že ho nikdo nemá rád, a proto se díval jen na",
    "Hungarian": "Volt egyszer egy ember, aki nem tudta, hogy ez az a ház, és már csak azt kérte,",
    "Romanian": "A fost odată un om care nu știa că este singur și în casa lui nu mai era nimeni",
    "Turkish": "Bir gün bu adam çok yorgun olarak eve geldi ve ne için daha çok çalıştığını sordu.",
    "Indonesian": "Anak itu tidak tahu bahwa dia akan pergi ke kota dengan ibu dan juga yang lain",
    "Vietnamese": "Tôi không biết một người nào có thể làm được những việc này cho các bạn của",
    "Latin": "In principio erat verbum et verbum erat apud deum, quod non est sed cum his qui sunt",
    "Russian": "Он не знал, что это было так, но она ему сказала, и все было как по его слову.",
    "Ukrainian": "Він не знав, що це було так, але вона йому сказала, і все було як за його",
    "Bulgarian": "Той не знаеше, че това е така, но тя му каза и всичко се беше случило както от",
    "Arabic": "ذهب الرجل إلى المدينة في الصباح من أن هذا كان على الطريق التي لا يعرفها",
    "Persian": "این مرد از شهر به خانه آمد و گفت که او را در آن جا ندیده است با هم",
    "Hebrew": "הוא לא ידע כי זה היה של אביו, אבל היא אמרה לו את כל מה שהוא רצה על זה",
    "Greek": "Δεν ήξερε ότι είναι το σπίτι του, και η μητέρα του είπε να μην πάει στο χωριό με",
    "Japanese": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "Korean": "옛날 옛적에 한 나무꾼이 산속에 살고 있었습니다.",
    "Chinese": "道可道，非常道。名可名，非常名。無名天地之始，有名萬物之母。",
    "Thai": "กาลครั้งหนึ่งนานมาแล้ว มีชายชราคนหนึ่งอาศัยอยู่ในป่า",
    "Armenian": "Լինում է, չի լինում մի աղքատ մարդ։",
    "Georgian": "იყო და არა იყო რა, ღვთის უკეთესი რა იქნებოდა.",
    "Tamil": "ஒரு ஊரில் ஒரு ராஜா இருந்தார்.",
    "Bengali": "এক দেশে ছিল এক রাজা।",
    "Telugu": "ఒక ఊరిలో ఒక రాజు ఉండేవాడు.",
    "Hindi or another language in Devanagari": "एक समय की बात है, एक राजा था।",
}


def test_every_language_has_a_text_here():
    assert set(TEXTS) == set(LANGUAGES)


@pytest.mark.parametrize("language", TEXTS)
def test_a_text_is_of_its_language(language):
    assert guess_language(TEXTS[language]) == language


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Title",
        "1, 2, 3, 4, 5, 6, 7 = 28",
        "def forward(self, tokens, mask): return self.head(self.body(tokens, mask))",
        "for a in a: b(a); for c in a: b(c, a)",
        "xqzt vvrk lljp wmbn ggfd ccsz ttyh nnjk ppwq rrst",
    ],
)
def test_what_is_of_no_language_is_undetermined(text):
    assert guess_language(text) == UNDETERMINED


def test_a_foreign_word_does_not_make_a_language():
    text = TEXTS["English"] + " Война 戦争 (the Japanese word) "
    assert guess_language(text) == "English"


def test_the_shares_of_languages_are_by_characters():
    sampler = LanguageSampler()
    sampler.add(TEXTS["English"] * 300)
    sampler.add(TEXTS["German"] * 100)
    total = sum(sampler.characters.values())
    assert set(sampler.characters) == {"English", "German"}
    expected = len(TEXTS["English"]) * 3 / (len(TEXTS["English"]) * 3 + len(TEXTS["German"]))
    assert abs(sampler.characters["English"] / total - expected) < 0.01
    assert sampler.samples <= 32


@pytest.mark.parametrize("period", [2, 4, 8, 10])
def test_of_many_documents_ever_fewer_are_sampled(period, monkeypatch):
    monkeypatch.setattr(languages, "_SAMPLES", 100)
    sampler = LanguageSampler()
    for index in range(4000):
        sampler.add(TEXTS["English" if index % period else "German"])
    assert 400 < sampler.samples < 1000
    german = len(TEXTS["German"])
    expected = german / (german + len(TEXTS["English"]) * (period - 1))
    share = sampler.characters["German"] / sum(sampler.characters.values())
    assert abs(share - expected) < 0.05


def test_single_letters_do_not_make_a_language():
    """As `a` in an English table, and names of variables, which Czech and Polish words are, too."""
    table = "a page, a file, a row, a key; s3, by v2"
    assert guess_language(table) == UNDETERMINED
