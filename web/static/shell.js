// What needs the browser itself: its history, its theme, its keyboard.
const NEXT = { "": "light", light: "dark", dark: "" };

const here = () => window.location.pathname + window.location.search;

export default {
  template: `<button type="button" class="quiet" @click="turn" :aria-label="'Theme: ' + (theme || 'as the system')"
    :title="'Theme: ' + (theme || 'as the system')">{{ {'': '◐', light: '☀', dark: '☾'}[theme] }}</button>`,
  data: () => ({ theme: document.documentElement.dataset.theme || "" }),
  mounted() {
    document.getElementById("first")?.remove(); // painted until now: web/first.py
    this.shown = here();
    window.addEventListener("popstate", () => here() !== this.shown && window.location.reload()); // not for a #fragment
    window.addEventListener("keydown", this.key);
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", this.told);
  },
  methods: {
    told() {
      window.dispatchEvent(new Event("theme"));
    },
    turn() {
      this.theme = NEXT[this.theme];
      if (this.theme) document.documentElement.dataset.theme = this.theme;
      else delete document.documentElement.dataset.theme;
      localStorage.setItem("theme", this.theme);
      this.told();
    },
    go(address) {
      window.history.pushState(null, "", address);
      this.shown = here();
    },
    leave(address) {
      window.location.assign(address);
    },
    key(event) {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "Escape" && event.target.blur) event.target.blur();
      if (event.target.matches("input, select, textarea, [contenteditable]")) return;
      const views = document.querySelectorAll("nav.views a");
      if (/^[1-9]$/.test(event.key) && views[event.key - 1]) views[event.key - 1].click();
      else if (event.key === "/") document.querySelector("[data-key-filter]")?.focus();
      else if (event.key === "t") document.querySelector("[data-key-time]")?.focus();
      else if (event.key === "l") document.querySelector("[data-key-live]")?.click();
      else return;
      event.preventDefault();
    },
  },
};
