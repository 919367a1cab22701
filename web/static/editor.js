// CodeMirror in the page's colours. Marks and their tips are text; Tab leaves the editor, as it leaves any field.
const library = import("nicegui-codemirror");
const PAUSE = 250; // ms without a key after which the server is told
const PIECE = 100_000; // characters of a message: a draft may be larger than a message can be

// CodeMirror's own style says which part of a text is what; here each of its colours becomes one of the page's.
const COLOURS = { "#708": "key", "#219": "atom", "#164": "number", "#a11": "string", "#e40": "string", "#00c": "name", "#940": "comment" };

function painted(CM) {
  const given = CM.defaultHighlightStyle.specs.filter((one) => COLOURS[one.color]);
  return CM.HighlightStyle.define(given.map((one) => ({ tag: one.tag, color: `var(--code-${COLOURS[one.color]})` })));
}

function place(doc, mark) {
  const line = doc.line(Math.max(1, Math.min(doc.lines, mark.line)));
  const from = Math.min(line.to, line.from + Math.max(0, mark.column - 1));
  const word = /^[\w.:/-]+|^./.exec(line.text.slice(from - line.from));
  return { line, from, to: from + (word ? word[0].length : 0) };
}

export default {
  props: { text: String, language: String, label: String, marks: Array, words: Array },
  emits: ["text", "run"],
  template: `<div class="editor"></div>`,
  created() {
    this.acts = [];
  },
  async mounted() {
    const CM = (this.CM = await library);
    if (!this.$el?.isConnected) return;
    this.set = CM.StateEffect.define();
    const marks = CM.StateField.define({
      create: () => CM.Decoration.none,
      update: (known, change) => {
        const given = change.effects.find((effect) => effect.is(this.set));
        return given ? given.value : known.map(change.changes);
      },
      provide: (field) => CM.EditorView.decorations.from(field),
    });
    const tips = CM.hoverTooltip((view, at) => {
      const found = (this.marks || []).find((mark) => {
        const { line } = place(view.state.doc, mark);
        return line.from <= at && at <= line.to;
      });
      if (!found) return null;
      return {
        pos: at,
        create() {
          const dom = document.createElement("div");
          dom.className = "editor-tip";
          dom.textContent = found.message;
          return { dom };
        },
      };
    });
    const run = () => {
      this.tell("run");
      return true;
    };
    const complete = (context) => {
      const word = context.matchBefore(/[\w.]+/);
      return word && (this.words || []).length ? { from: word.from, options: this.words.map((one) => ({ label: one })) } : null;
    };
    const language = new CM.Compartment();
    this.view = new CM.EditorView({
      doc: this.text,
      parent: this.$el,
      extensions: [
        CM.Prec.highest(CM.keymap.of([{ key: "Mod-Enter", run }])),
        CM.basicSetup,
        CM.syntaxHighlighting(painted(CM)),
        language.of([]),
        CM.EditorState.languageData.of(() => [{ autocomplete: complete }]),
        CM.EditorState.tabSize.of(2),
        CM.EditorView.lineWrapping,
        CM.EditorView.contentAttributes.of({ "aria-label": this.label, tabindex: "0" }),
        marks,
        tips,
        CM.EditorView.domEventHandlers({ blur: () => void (this.timer && this.tell("text")) }), // before what was clicked
        CM.EditorView.updateListener.of((update) => update.docChanged && !this.putting && this.later()),
      ],
    });
    this.mark();
    this.acts.forEach((act) => act());
    const known = CM.languages.find((one) => one.name === this.language);
    if (known) this.view.dispatch({ effects: language.reconfigure(await known.load()) });
  },
  beforeUnmount() {
    clearTimeout(this.timer);
    this.view?.destroy();
  },
  watch: {
    marks() {
      this.mark();
    },
  },
  methods: {
    later() {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.tell("text"), PAUSE);
    },
    tell(event) {
      clearTimeout(this.timer);
      this.timer = 0;
      const text = this.view.state.doc.toString();
      let at = 0;
      do {
        let end = at + PIECE;
        if (/[\uD800-\uDBFF]/.test(text[end - 1] || "")) end += 1; // a character of two units stays whole
        this.$emit(event, [text.slice(at, end), at, end >= text.length]);
        at = end;
      } while (at < text.length);
    },
    there(act) {
      if (this.view) act();
      else this.acts.push(act); // for when the editor has come
    },
    put(text) {
      this.there(() => {
        clearTimeout(this.timer);
        this.timer = 0;
        this.putting = true;
        this.view.dispatch({ changes: { from: 0, to: this.view.state.doc.length, insert: text } });
        this.putting = false;
      });
    },
    insert(text) {
      this.there(() => {
        this.view.dispatch(this.view.state.replaceSelection(text));
        this.view.focus();
      });
    },
    reveal(line, column) {
      this.there(() => {
        const { from } = place(this.view.state.doc, { line, column });
        this.view.dispatch({ selection: { anchor: from }, effects: this.CM.EditorView.scrollIntoView(from, { y: "center" }) });
        this.view.focus();
      });
    },
    mark() {
      if (!this.view) return;
      const { Decoration } = this.CM;
      const ranges = [];
      for (const one of this.marks || []) {
        if (!one.line) continue;
        const { line, from, to } = place(this.view.state.doc, one);
        ranges.push(Decoration.line({ class: `mark-line ${one.severity}` }).range(line.from));
        if (to > from) ranges.push(Decoration.mark({ class: `mark ${one.severity}` }).range(from, to));
      }
      this.view.dispatch({ effects: this.set.of(Decoration.set(ranges, true)) });
    },
  },
};
