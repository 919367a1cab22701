// ECharts with the page's colours and with texts as text: options are data only, and tooltips are made of text nodes.
let library;

// ECharts is the largest script of all: what else there is to see is painted first.
async function loaded() {
  if (!document.hidden) await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return (library ??= import("nicegui-echart"));
}

const COLOUR = /^var\((--[\w-]+)\)$/;

function painted(value, style) {
  if (typeof value === "string") {
    const name = COLOUR.exec(value);
    return name ? style.getPropertyValue(name[1]).trim() : value;
  }
  if (Array.isArray(value)) return value.map((one) => painted(one, style));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, painted(one, style)]));
}

function line(text, colour) {
  const element = document.createElement("div");
  if (colour) {
    const dot = document.createElement("span");
    dot.className = "dot";
    dot.style.background = colour;
    element.append(dot);
  }
  element.append(text);
  return element;
}

const number = (value) => (typeof value === "number" ? value.toLocaleString("en-US") : String(value ?? ""));

function tip(given) {
  const box = document.createElement("div");
  box.className = "tip";
  const points = Array.isArray(given) ? given : [given];
  const own = points[0]?.data?.tip;
  if (own) own.forEach((text) => box.append(line(text)));
  else {
    box.append(line(String(points[0]?.axisValueLabel ?? points[0]?.name ?? "")));
    for (const point of points) {
      const value = Array.isArray(point.value) ? point.value[point.value.length - 1] : point.value;
      if (value) box.append(line(`${point.seriesName}: ${number(value)}`, point.color));
    }
  }
  return box;
}

export default {
  props: { options: Object, label: String, brush: Boolean },
  emits: ["choose", "brush"],
  template: `<div class="chart" role="img" :aria-label="label"></div>`,
  async mounted() {
    const { echarts } = await loaded();
    if (!this.$el?.isConnected) return;
    this.chart = echarts.init(this.$el, null, { renderer: "canvas" });
    this.chart.on("click", (event) => event.data?.key && this.$emit("choose", event.data.key));
    this.chart.on("brushEnd", (event) => {
      const range = event.areas?.[0]?.coordRange;
      this.chart.dispatchAction({ type: "brush", areas: [] });
      if (range) this.$emit("brush", range);
    });
    this.resizer = new ResizeObserver(() => this.chart.resize());
    this.resizer.observe(this.$el);
    this.themer = () => this.update_chart();
    window.addEventListener("theme", this.themer);
    this.update_chart();
  },
  beforeUnmount() {
    this.resizer?.disconnect();
    window.removeEventListener("theme", this.themer);
    this.chart?.dispose();
  },
  methods: {
    update_chart() {
      if (!this.chart) return;
      const options = painted(this.options, getComputedStyle(this.$el));
      options.animation = false;
      options.textStyle = { fontFamily: getComputedStyle(this.$el).fontFamily };
      if (options.tooltip) {
        options.tooltip = { confine: true, transitionDuration: 0, ...options.tooltip, formatter: tip, className: "tooltip" };
        delete options.tooltip.renderMode;
      }
      this.chart.setOption(options, { replaceMerge: ["series"] });
      if (this.brush)
        this.chart.dispatchAction({
          type: "takeGlobalCursor", key: "brush", brushOption: { brushType: "lineX", brushMode: "single" },
        });
    },
  },
};
