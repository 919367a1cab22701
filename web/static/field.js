// An input that keeps what is being typed, whatever else of the page is drawn anew meanwhile.
export default {
  props: { label: String, value: String, placeholder: String, mark: String },
  emits: ["typed"],
  data() {
    return { now: this.value };
  },
  template: `<label class="field">
      <span class="field-label">{{ label }}</span>
      <input :value="now" :placeholder="placeholder" spellcheck="false" autocomplete="off" v-bind="mark ? {[mark]: ''} : {}"
        @input="now = $event.target.value" @change="$emit('typed', now)">
    </label>`,
  methods: {
    show(value) {
      this.now = value;
    },
  },
};
