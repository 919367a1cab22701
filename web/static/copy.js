// A button that copies what it holds.
export default {
  props: { text: String, label: String },
  data: () => ({ done: "" }),
  template: `<button type="button" class="copy" :title="text" @click.stop="copy">{{ done || label }}</button>`,
  methods: {
    async copy() {
      try {
        await navigator.clipboard.writeText(this.text);
      } catch {
        const area = Object.assign(document.createElement("textarea"), { value: this.text });
        document.body.append(area);
        area.select();
        document.execCommand("copy");
        area.remove();
      }
      this.done = "Copied";
      setTimeout(() => (this.done = ""), 1500);
    },
  },
};
