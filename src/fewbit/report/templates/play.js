"use strict";
// Gymnasium's equations in float64: state -> observation; state, action, push -> state. What is drawn: a cart and a pole.
const worlds = {
  "CartPole-v1": {
    seconds: 0.02, push: 12, unit: "N",
    start: () => [0, 0, 0, 0].map(() => Math.random() * 0.1 - 0.05),
    see: s => s,
    fallen: s => Math.abs(s[0]) > 2.4 || Math.abs(s[2]) > 24 * Math.PI / 360,
    step([x, speed, angle, spin], action, push) {
      const sine = Math.sin(angle), cosine = Math.cos(angle);
      const pull = ((action[0] === 1 ? 10 : -10) + push + 0.05 * spin * spin * sine) / 1.1;
      const bend = (9.8 * sine - cosine * pull) / (0.5 * (4 / 3 - 0.1 * cosine * cosine / 1.1));
      const haste = pull - 0.05 * bend * cosine / 1.1;
      return [x + 0.02 * speed, speed + 0.02 * haste, angle + 0.02 * spin, spin + 0.02 * bend];
    },
    draw: s => ({x: s[0] * 60, angle: s[2], cart: true}),
  },
  "Pendulum-v1": {
    seconds: 0.05, push: 4, unit: "Nm",
    start: () => [(Math.random() * 2 - 1) * Math.PI, Math.random() * 2 - 1],
    see: s => [Math.cos(s[0]), Math.sin(s[0]), s[1]],
    fallen: () => false,
    step([angle, spin], action, push) {
      const torque = Math.min(2, Math.max(-2, action[0])) + push;
      const next = Math.min(8, Math.max(-8, spin + (15 * Math.sin(angle) + 3 * torque) * 0.05));
      return [angle + next * 0.05, next];
    },
    draw: s => ({x: 0, angle: -s[0], cart: false}),
  },
};

const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const floats = text => new Float32Array(bytes(text).buffer);
const one = {Relu: v => v.map(a => Math.max(a, 0)), Tanh: v => v.map(Math.tanh), ArgMax: v => [v.indexOf(Math.max(...v))]};
const two = {Add: (a, b) => a + b, Sub: (a, b) => a - b, Mul: (a, b) => a * b, Div: (a, b) => a / b};
const round = v => v.map(Math.fround);

// The float network: sums in float64, every value rounded to float32.
function floatPolicy(player) {
  const steps = player.steps.map(s => ({...s, inputs: s.inputs.map(v => typeof v === "string" ? v : floats(v.floats))}));
  const run = {
    Gemm: (x, w, b) => Array.from(b, (v, row) => x.reduce((sum, a, k) => sum + a * w[row * x.length + k], v)),
    Clip: (x, low, high) => x.map(a => Math.min(high[0], Math.max(low[0], a))),
  };
  return observation => {
    const known = {[player.input]: round(observation)};
    for (const s of steps) {
      const [a, b, c] = s.inputs.map(v => typeof v === "string" ? known[v] : Array.from(v));
      const long = Math.max(a.length, b ? b.length : 0), at = (v, k) => v[v.length === 1 ? 0 : k];
      known[s.out] = round(two[s.op] ? Array.from({length: long}, (_, k) => two[s.op](at(a, k), at(b, k)))
        : run[s.op] ? run[s.op](a, b, c) : one[s.op] ? one[s.op](a) : a);
    }
    return known[player.output];
  };
}

// The exported C: observation and action lie in the module's own memory.
async function integerPolicy(player) {
  const {exports} = (await WebAssembly.instantiate(bytes(player.wasm))).instance;
  const seen = new Float32Array(exports.memory.buffer, exports.observation_at(), player.inputs);
  const Kind = player.integer ? Int32Array : Float32Array;
  const done = new Kind(exports.memory.buffer, exports.action_at(), player.outputs);
  return observation => { seen.set(observation); exports.act(); return Array.from(done); };
}

(async () => {
  const {world: name, players} = JSON.parse(document.getElementById("play-data").textContent), world = worlds[name];
  const lanes = document.getElementById("play-lanes"), slider = document.getElementById("play-push");
  const button = document.getElementById("play-run"), shown = document.getElementById("play-shown");
  let running = false, state = world.start(), last = 0;
  const actors = await Promise.all(players.map(async player => {
    const lane = document.createElement("figure");
    lane.innerHTML = '<h4></h4><svg viewBox="-160 -110 320 160" role="img"><path class="rail" d="M-144 30H144"/>' +
      '<rect class="cart" x="-22" y="18" width="44" height="24" rx="4"/><path class="pole" d="M0 22V-68"/></svg><figcaption></figcaption>';
    lane.querySelector("h4").textContent = player.name;
    lane.querySelector("svg").setAttribute("aria-label", `${name}, driven by ${player.name}`);
    lanes.append(lane);
    const act = player.wasm ? await integerPolicy(player) : floatPolicy(player);
    return {player, act, lane, state, steps: 0, falls: 0, rest: 0, longest: 0};
  }));
  const push = () => Number(slider.value) * world.push;
  function draw(a) {
    const {x, angle, cart} = world.draw(a.state), tilt = angle * 180 / Math.PI, low = cart ? 22 : -30;
    a.lane.querySelector(".rail").style.display = a.lane.querySelector(".cart").style.display = cart ? "" : "none";
    a.lane.querySelector(".cart").setAttribute("transform", `translate(${x} 0)`);
    a.lane.querySelector(".pole").setAttribute("d", cart ? "M0 22V-68" : "M0 -30V-100");
    a.lane.querySelector(".pole").setAttribute("transform", `translate(${x} 0) rotate(${tilt} 0 ${low})`);
    a.lane.querySelector("figcaption").textContent = `${a.steps} steps` + (cart ? `, ${a.falls} falls` : "") +
      `; ${(a.player.bytes / 1000).toFixed(1)} KB of numbers`;
  }
  function step(a) {
    if (a.rest > 0) { a.rest--; if (!a.rest) { a.state = world.start(); a.steps = 0; } return; }
    a.state = world.step(a.state, a.act(world.see(a.state)), push());
    a.steps++;
    if (world.fallen(a.state)) { a.falls++; a.rest = 40; }
  }
  function frame(now) {
    if (!running) return;
    if (now - last > 1000 * world.seconds) { last = now; actors.forEach(a => { step(a); draw(a); }); }
    requestAnimationFrame(frame);
  }
  function again() {
    state = world.start();
    actors.forEach(a => { Object.assign(a, {state, steps: 0, falls: 0, rest: 0}); draw(a); });
  }
  button.addEventListener("click", () => {
    running = !running;
    button.textContent = running ? "Pause" : "Start";
    if (running) requestAnimationFrame(frame);
  });
  document.getElementById("play-again").addEventListener("click", again);
  slider.addEventListener("input", () => { shown.textContent = `${push().toFixed(1)} ${world.unit}`; });
  shown.textContent = `0.0 ${world.unit}`;
  actors.forEach(draw);
  window.fewbitPlay = {world, act: actors.map(a => a.act), step: n => { for (let k = 0; k < n; k++) actors.forEach(step); actors.forEach(draw); }};
})();
