"""The six domains of the quickstart, each asked from Python packages that carry real reference data.

`DOMAINS`, at the end, is the table: per domain the function that yields its rows, the packages they come
from with their licences, and how many train rows are kept. A function gets a seeded generator, which picks
the wording of each question, and walks its source in a fixed order: the same package versions give the
same rows.
"""

import ast
import importlib
import inspect
import random
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType, ModuleType
from typing import NamedTuple

from versatune_plugin.quickstart.rows import Row


class Domain(NamedTuple):
    """One domain: where its rows come from, what they look like, and how many train rows to keep."""

    rows: Callable[[random.Random], Iterator[Row]]
    licences: dict[str, str]  # package on PyPI -> licence of what is taken from it
    num_train: int
    form: str


# --- code -----------------------------------------------------------------------------------------

# Pure-Python modules of the standard library (their source can be read), without side effects when imported.
MODULES = """
    ast asyncio.tasks base64 bdb calendar cmd code codeop collections compileall
    configparser contextlib copy copyreg dataclasses difflib dis doctest
    email.header email.message email.utils enum filecmp fileinput fnmatch fractions ftplib functools
    getpass gettext glob graphlib gzip heapq hmac html html.parser http.client http.cookies imaplib
    importlib.metadata inspect ipaddress json linecache locale logging logging.handlers mailbox
    mimetypes modulefinder netrc numbers optparse pathlib pickle pickletools pkgutil platform
    plistlib poplib pprint profile pstats pyclbr queue quopri random re sched secrets selectors
    shelve shlex shutil smtplib socket socketserver statistics subprocess symtable tarfile tempfile
    textwrap threading timeit tokenize trace traceback types typing unittest.case unittest.mock
    urllib.parse urllib.request uuid warnings weakref webbrowser xml.dom.minidom
    xml.etree.ElementTree xml.sax.saxutils zipapp zipfile
"""
MAX_BODY_LINES = 12


def code(rng: random.Random) -> Iterator[Row]:
    """Python's own functions: from docstring to name, from name to docstring, and the body itself."""
    summaries = set()  # a method and its overrides often share one: it is asked about once
    for module_name in MODULES.split():
        for name, function in _functions(importlib.import_module(module_name)):
            summary, call = _summary(function), f"{module_name}.{name}{_signature(function)}"
            if not summary or summary in summaries:
                continue
            summaries.add(summary)
            question = rng.choice(
                [
                    f"Which function of Python's `{module_name}` module fits this description? {summary}",
                    f"What should I call in `{module_name}` for this? {summary}",
                    f"Name the callable in Python's `{module_name}` that is documented as: {summary}",
                ]
            )
            yield Row(call, question, f"`{call}`")
            question = rng.choice(["What does `{}` do?", "Explain `{}` in a sentence or two.", "Document `{}`."])
            yield Row(call, question.format(call), summary)
            if body := _body(function):
                header = f'def {function.__name__}{_signature(function)}:\n    """{summary}"""'
                question = rng.choice(["Implement `{}`.", "Write the body of `{}`.", "Complete `{}` in Python."])
                yield Row(call, question.format(f"{module_name}.{name}"), body, header)


def _functions(module: ModuleType) -> Iterator[tuple[str, FunctionType]]:
    """Public functions written in the file of `module`, and the public methods of its public classes."""
    for name, member in sorted(vars(module).items()):
        defined_here = inspect.isclass(member) and member.__module__ == module.__name__
        methods = sorted(vars(member).items()) if defined_here else []
        for qualified, function in [
            (name, member),
            *((f"{name}.{method}", value) for method, value in methods),
        ]:
            if re.search(r"\b_", qualified) or not inspect.isfunction(function):
                continue
            compiled = function.__code__  # of another name where a decorator has replaced the function
            if (compiled.co_filename, compiled.co_name) == (module.__file__, qualified.rpartition(".")[2]):
                yield qualified, function


def _signature(function: FunctionType) -> str:
    signature = str(inspect.signature(function))
    return "(...)" if re.search(r"<| at 0x", signature) or len(signature) > 120 else signature


def _summary(function: FunctionType) -> str:
    """The first paragraph of the docstring, or nothing where it is not a plain sentence."""
    paragraph = " ".join(inspect.cleandoc(function.__doc__ or "").split("\n\n")[0].split())
    plain = re.fullmatch(r"[A-Z][^:]{24,280}\.", paragraph)
    return paragraph if plain else ""


def _body(function: FunctionType) -> str:
    """The statements after the docstring, or nothing where they are too many."""
    source = textwrap.dedent(inspect.getsource(function.__code__))
    definition = ast.parse(source).body[0]
    if not isinstance(definition, ast.FunctionDef) or len(definition.body) < 2:
        return ""
    lines = source.splitlines()[definition.body[0].end_lineno : definition.end_lineno]
    return "\n".join(lines).strip("\n") if len(lines) <= MAX_BODY_LINES else ""


# --- medicine -------------------------------------------------------------------------------------

NUM_DIAGNOSES = 1500
QUESTIONS_PER_DIAGNOSIS = 2


def medicine(rng: random.Random) -> Iterator[Row]:
    """ICD-10-CM: codes and diagnoses in both directions, chapters, synonyms, exclusions and subdivisions."""
    import simple_icd_10_cm as icd

    codes = [code for code in icd.get_all_codes() if icd.is_category_or_subcategory(code) and len(code) <= 6]
    for code in sorted(rng.sample(codes, NUM_DIAGNOSES)):
        title, chapter = icd.get_description(code), icd.get_ancestors(code)[-1]
        synonyms, exclusions = icd.get_inclusion_term(code) + icd.get_includes(code), icd.get_excludes1(code)
        children = icd.get_children(code)
        name = f"{title} ({code})"
        candidates = [
            (
                ["What does the ICD-10-CM code {code} stand for?", "Spell out the diagnosis code {code}."],
                f"{code} stands for: {title}.",
            ),
            (
                ["Which ICD-10-CM code belongs to this diagnosis? {title}", "Code this diagnosis: {title}"],
                code,
            ),
            (
                ["In which chapter of ICD-10-CM is {name} found?", "Where does ICD-10-CM classify {name}?"],
                f"In chapter {chapter}, {icd.get_description(chapter)}.",
            ),
            (
                ["What else is recorded under {name}?", "Give other terms for {name} in ICD-10-CM."],
                _listing(synonyms),
            ),
            (
                ["Which conditions must not be coded as {name}?", "What does ICD-10-CM exclude from {name}?"],
                _listing(exclusions),
            ),
            (
                ["How does ICD-10-CM subdivide {name}?", "List the codes below {name}."],
                "\n".join(f"{child}: {icd.get_description(child)}" for child in children),
            ),
        ]
        answerable = [(questions, answer) for questions, answer in candidates if answer]
        for questions, answer in rng.sample(answerable, QUESTIONS_PER_DIAGNOSIS):
            question = rng.choice(questions).format(code=code, title=title, name=name)
            yield Row(code[:3], question, answer)


# --- science --------------------------------------------------------------------------------------


def science(rng: random.Random) -> Iterator[Row]:
    """The chemical elements: descriptions, origins and uses as text, and properties as numbers with units."""
    from mendeleev.fetch import fetch_table

    elements = fetch_table("elements").astype(object)
    elements = elements.where(elements.notna(), None).to_dict("records")
    series = dict(fetch_table("series")[["id", "name"]].itertuples(index=False))
    isotopes = fetch_table("isotopes").dropna(subset=["abundance"])
    oxidation_states = fetch_table("oxidationstates").query("category == 'main'")
    properties = [  # column, name, unit
        ("atomic_weight", "atomic weight", "u"),
        ("density", "density", "g/cm³"),
        ("en_pauling", "Pauling electronegativity", ""),
        ("thermal_conductivity", "thermal conductivity", "W/(m·K)"),
        ("specific_heat_capacity", "specific heat capacity", "J/(g·K)"),
        ("electron_affinity", "electron affinity", "eV"),
        ("fusion_heat", "heat of fusion", "kJ/mol"),
        ("evaporation_heat", "heat of evaporation", "kJ/mol"),
        ("covalent_radius_pyykko", "covalent radius", "pm"),
        ("abundance_crust", "abundance in the Earth's crust", "mg/kg"),
    ]

    for element in elements:
        title, symbol, number = element["name"], element["symbol"], element["atomic_number"]
        name = title.lower()
        texts = [
            ("description", ["Describe the element {}.", "What kind of substance is {}?"]),
            ("uses", ["What is {} used for?", "Name applications of {}."]),
            ("sources", ["Where is {} found, or how is it made?", "What are the sources of {}?"]),
            ("name_origin", ["How did {} get its name?", "Explain the origin of the name {}."]),
        ]
        for column, questions in texts:
            if answer := _sentences(element[column], 320):
                yield Row(name, rng.choice(questions).format(name), answer)

        yield Row(name, f"Which element has the symbol {symbol}?", f"{title}, atomic number {number}.")
        group = f"group {element['group_id']:.0f}" if element["group_id"] else "no numbered group"
        place = f"period {element['period']}, {group}, {element['block']}-block ({series[element['series_id']]})"
        yield Row(name, f"Where does {name} stand in the periodic table?", f"{title} ({symbol}) stands in {place}.")
        shells = element["electronic_configuration"]
        yield Row(name, f"Write the electron configuration of {name} (Z = {number}).", shells)
        if element["discovery_year"] and element["discovery_location"]:
            when, where = f"{element['discovery_year']:.0f}", element["discovery_location"]
            found = f"{element['discoverers']}, in {when} ({where})."
            yield Row(name, f"Who discovered {name}, when and where?", found)
        natural = isotopes[isotopes.atomic_number == number]
        if len(natural):
            shares = [f"{symbol}-{i.mass_number} ({i.abundance:g} %)" for i in natural.itertuples()]
            yield Row(name, f"Which isotopes make up natural {name}?", _listing(shares))
        states = oxidation_states[oxidation_states.atomic_number == number].oxidation_state
        if len(states):
            signed = [f"{state:+d}" for state in sorted(states)]
            yield Row(name, f"In which main oxidation states does {name} occur?", ", ".join(signed))
        for column, quantity, unit in rng.sample(properties, 4):
            if element[column]:
                value = f"{element[column]:.4g} {unit}".strip()
                yield Row(name, f"What is the {quantity} of {name}?", f"The {quantity} of {name} is {value}.")


# --- general --------------------------------------------------------------------------------------


def general(rng: random.Random) -> Iterator[Row]:
    """World knowledge, country by country: capitals, neighbours, provinces, names, and small comparisons."""
    from countryinfo import all_countries

    countries = sorted((country.info() for country in all_countries()), key=lambda country: country["name"])
    names = {country["ISO"]["alpha3"]: country["name"] for country in countries if country.get("ISO")}
    regions = {country["name"]: country["region"] for country in countries if country.get("region")}
    languages = {"de": "German", "es": "Spanish", "fr": "French", "it": "Italian"}

    for country in countries:
        name, capital = country["name"], country.get("capital")
        if isinstance(capital, str) and capital:
            question = rng.choice(["What is the capital of {}?", "Name the capital city of {}."])
            yield Row(name, question.format(name), capital)
            yield Row(name, f"{capital} is the capital of which country or territory?", name)
        if name in regions and country.get("subregion"):
            yield Row(name, f"In which part of the world is {name}?", f"{country['subregion']}, {regions[name]}.")
        if borders := [names[code] for code in country.get("borders", []) if code in names]:
            question = rng.choice(["Which countries border {}?", "List the neighbours of {}."])
            yield Row(name, question.format(name), _listing(borders))
        if len(provinces := country.get("provinces", [])) > 3:
            chosen = rng.sample(provinces, min(len(provinces), 6))
            yield Row(
                name,
                f"Name {len(chosen)} provinces, states or districts of {name}.",
                _listing(sorted(chosen)),
            )
        if country.get("demonym"):
            yield Row(name, f"Which demonym belongs to {name}?", country["demonym"])
        if country.get("nativeName", name) != name:
            yield Row(name, f"What do the people of {name} call their own country?", country["nativeName"])
        if country.get("tld") and country.get("callingCodes"):
            dialling = f"The domain is {country['tld'][0]}, the calling code +{country['callingCodes'][0]}."
            yield Row(name, f"Give the internet domain and the telephone calling code of {name}.", dialling)
        translations = country.get("translations") or {}
        foreign = [language for language in languages if translations.get(language) not in (None, "", name)]
        for language in rng.sample(foreign, min(len(foreign), 1)):
            yield Row(name, f"What is {name} called in {languages[language]}?", translations[language])
        if name in regions:
            others = [other for other, region in regions.items() if region != regions[name]]
            region = regions[rng.choice(others)]
            shown = [name, *rng.sample([other for other in others if regions[other] == region], 3)]
            rng.shuffle(shown)
            question = f"Which of these does not belong to {region}: {', '.join(shown)}?"
            yield Row(name, question, f"{name}, which belongs to {regions[name]}.")
        other = rng.choice(countries)
        if country.get("area") and other.get("area") and country["area"] != other["area"]:
            large, small = sorted([country, other], key=lambda one: -one["area"])
            answer = f"{large['name']} ({large['area']:,.0f} km²); {small['name']} has {small['area']:,.0f} km²."
            yield Row(name, f"Which is larger, {name} or {other['name']}?", answer)


# --- law ------------------------------------------------------------------------------------------

# There are thousands of courts and reports; with this many of them a third of the rows are clauses.
NUM_COURTS, NUM_REPORTERS, NUM_JOURNALS = 500, 200, 200
STATUTE_KINDS = {
    "leg_session": "the session laws",
    "leg_statute": "the statutes",
    "leg_act": "an act",
    "admin_compilation": "the administrative code",
    "admin_register": "the administrative register",
}


def law(rng: random.Random) -> Iterator[Row]:
    """Clauses of public licences to continue, and American courts, law reports and legal citations."""
    import reporters_db
    import spdx
    from courts_db import courts

    clauses = set()
    for licence in map(spdx.License, spdx.licenses()):
        family = licence.id.partition("-")[0]  # its versions share most of their text
        for clause in _clauses(licence.template):
            if clause in clauses:
                continue
            clauses.add(clause)
            start, rest = clause
            question = rng.choice(["Continue this clause of the {}:", "How does the {} go on after these words?"])
            yield Row(family, f"{question.format(licence.name)} {start}", rest)
        yield Row(family, f"What is the SPDX identifier of the {licence.name}?", licence.id)

    for court in rng.sample(courts, NUM_COURTS):
        name, citation, kind = court["name"], court.get("citation_string"), court.get("type")
        if citation and citation != name:
            question = rng.choice(["How is the {} cited?", "Abbreviate {} as in a legal citation."])
            yield Row(name, question.format(name), citation)
        if kind in ("trial", "appellate", "special", "bankruptcy") and court["dates"][0]["start"]:
            start, end = court["dates"][0]["start"][:4], court["dates"][-1]["end"]
            years = f"from {start} to {end[:4]}" if end else f"since {start}"
            answer = f"A {court['system']} {kind} court in {court['location']}, sitting {years}."
            yield Row(name, f"What kind of court is the {name}?", answer)

    for abbreviation, reports in rng.sample(sorted(reporters_db.REPORTERS.items()), NUM_REPORTERS):
        name, edition = reports[0]["name"], reports[0]["editions"].get(abbreviation)
        if edition and edition["start"] and edition["end"]:
            answer = f"{name}, {edition['start'].year}-{edition['end'].year}."
            yield Row(name, f"Which law reports are cited as “{abbreviation}”, and of which years?", answer)
        for variation in sorted(reports[0]["variations"])[:1]:
            yield Row(name, f"Give the standard citation form of “{variation}” ({name}).", abbreviation)
    for abbreviation, journals in rng.sample(sorted(reporters_db.JOURNALS.items()), NUM_JOURNALS):
        question = rng.choice(["Which law journal is cited as “{}”?", "Spell out the law journal “{}”."])
        yield Row(abbreviation, question.format(abbreviation), journals[0]["name"])
    for abbreviation, statutes in sorted(reporters_db.LAWS.items()):
        kind, jurisdiction = STATUTE_KINDS.get(statutes[0]["cite_type"]), statutes[0]["jurisdiction"]
        if kind and "\\" not in statutes[0]["examples"][0]:
            answer = f"It cites {kind} of {jurisdiction}: {statutes[0]['name']}."
            yield Row(abbreviation, f"What does the citation “{statutes[0]['examples'][0]}” refer to?", answer)


def _clauses(template: str) -> Iterator[tuple[str, str]]:
    """English paragraphs of running text, cut in two between words at about two fifths."""
    for paragraph in re.split(r"\n\s*\n", template):
        words = paragraph.split()
        plain = re.fullmatch(r"[A-Z][^<>]{120,400}[.;]", " ".join(words))
        if plain and " the " in paragraph:  # neither French nor in capitals
            cut = len(words) * 2 // 5
            yield " ".join(words[:cut]), " ".join(words[cut:])


# --- finance --------------------------------------------------------------------------------------


def finance(rng: random.Random) -> Iterator[Row]:
    """Measures of companies and prices with formulas, accounts, currencies and merchant categories."""
    import factorbase
    import iso4217
    import iso18245
    from uk_coa import ChartOfAccounts

    catalog = factorbase.default_catalog()
    for factor in sorted(catalog, key=lambda factor: factor.id):
        name, description = factor.name, _sentences(factor.description, 300)
        if description and not re.search(r"previous|entry|entries|mirror|`|parameter", description):
            question = rng.choice(["Explain the {} to an investor.", "How should the {} be read?"])
            yield Row(name, question.format(name), description)
        question = rng.choice(["Define {} in one sentence.", "What does {} measure?"])
        yield Row(name, question.format(name), factor.summary)
        if len(factor.formulas) == 1:
            yield Row(name, f"Write the formula of {name} in LaTeX.", f"${factor.formulas[0].latex}$")

    for account in ChartOfAccounts():
        name = f"“{account.name}” ({account.code})"
        if account.description:
            question = rng.choice(["What should a UK bookkeeper know about account {}?", "Explain the UK account {}."])
            yield Row(account.name, question.format(name), account.description)
        effect, sheet = (
            "increases" if account.debit_increase else "decreases",
            _words(account.statement.value),
        )
        answer = f"A debit {effect} its balance ({_words(account.type.value)}, {sheet})."
        yield Row(account.name, f"What does a debit do to account {name}?", answer)

    for currency in sorted(iso4217.Currency, key=lambda currency: currency.code):
        name = currency.currency_name
        question = rng.choice(
            ["What is the ISO 4217 code of the currency {}?", "Which three letters stand for the {}?"]
        )
        yield Row(name, question.format(name), f"{currency.code} (numeric code {currency.number:03d}).")
        if currency.exponent is not None:
            question = f"Which currency has the code {currency.code}, and with how many decimal places?"
            yield Row(name, question, f"{name}, {currency.exponent} decimal places.")

    for category in iso18245.get_all_mccs():
        if category.iso_description:
            question = f"Which merchant category code (ISO 18245) belongs to: {category.iso_description}?"
            answer = f"{category.mcc}, in the range “{category.range.description}”." if category.range else category.mcc
            yield Row(category.mcc, question, answer)


# --- shared ---------------------------------------------------------------------------------------


def _listing(items: Sequence[str]) -> str:
    """The items in one line of text; empty for no items."""
    return "; ".join(" ".join(item.split()) for item in items)


def _sentences(text: str | None, max_characters: int) -> str:
    """As many whole sentences from the start of `text` as fit; empty where the first one does not."""
    text = " ".join((text or "").split())
    if len(text) > max_characters:
        text = text[: max_characters + 1].rpartition(". ")[0]
    return text if not text or text.endswith(".") else f"{text}."


def _words(identifier: str) -> str:
    return identifier.replace("_", " ")


DOMAINS: dict[str, Domain] = {
    "medicine": Domain(medicine, {"simple-icd-10-cm": "MIT"}, 1500, "diagnosis <-> code, synonyms, exclusions"),
    "general": Domain(general, {"countryinfo": "MIT"}, 1200, "short facts about countries, lists, comparisons"),
    "code": Domain(code, {}, 900, "docstring <-> signature, function bodies"),
    "law": Domain(
        law,
        {"spdx": "CC0-1.0", "courts-db": "BSD-2-Clause", "reporters-db": "BSD-2-Clause"},
        700,
        "licence clauses to continue, courts and legal citations",
    ),
    "science": Domain(science, {"mendeleev": "MIT"}, 500, "descriptions and properties of the elements"),
    "finance": Domain(
        finance,
        {"factorbase": "MIT", "uk-chart-of-accounts": "MIT", "iso4217": "public domain", "iso18245": "MIT"},
        350,
        "ratios and indicators with formulas, accounts, currencies, merchant categories",
    ),
}
