"use strict";
const overlay = {{ overlay | tojson }};
for (const sentence of document.querySelectorAll(".how")) sentence.hidden = false;
// Each card holds all planes of its cube in one picture. Without this script the middle planes are seen.
for (const cube of document.querySelectorAll(".cube")) {
  const size = Number(cube.dataset.size), spacing = Number(cube.dataset.spacing), gap = Number("{{ gap_px }}");
  const still = cube.querySelector("img.plain"), slide = cube.querySelector(".slide");
  const slider = slide.querySelector("input"), label = slide.querySelector("output");
  const light = cube.querySelector(".switch input"), pictures = [cube.dataset.cube, cube.dataset.overlay];

  // A function that tells the grey value at a voxel.
  async function reader(base64) {
    const sprite = new Image();
    sprite.src = "data:image/png;base64," + base64;
    await sprite.decode();
    const across = Math.ceil(Math.sqrt(size)), hidden = document.createElement("canvas");
    hidden.width = sprite.width;
    hidden.height = sprite.height;
    const drawn = hidden.getContext("2d", { willReadFrequently: true });
    drawn.drawImage(sprite, 0, 0);
    const pixels = drawn.getImageData(0, 0, sprite.width, sprite.height).data;
    return (z, y, x) =>
      pixels[4 * ((Math.floor(z / across) * size + y) * sprite.width + (z % across) * size + x)];
  }

  function start([grey, strength]) {
    const canvas = document.createElement("canvas");
    canvas.width = 3 * size + 2 * gap;
    canvas.height = size;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", still.alt);
    const context = canvas.getContext("2d"), picture = context.createImageData(canvas.width, size);
    for (let place = 3; place < picture.data.length; place += 4) picture.data[place] = 255;

    function draw() {
      const steps = Number(slider.value), at = (size - 1) / 2 + steps, last = size - 1;
      for (let row = 0; row < size; row++) {
        for (let column = 0; column < size; column++) {
          // Front and head up, the patient's right on the left; in the sagittal plane the front.
          const voxels = [[at, row, column], [last - row, at, column], [last - row, column, at]];
          voxels.forEach((voxel, plane) => {
            const place = 4 * (row * canvas.width + plane * (size + gap) + column), value = grey(...voxel);
            picture.data.fill(value, place, place + 3);
            if (!light?.checked) return;
            const step = strength(...voxel) - overlay.neutral, opaque = Math.abs(step) * overlay.opaque_per_step;
            const colour = step > 0 ? overlay.raised : overlay.lowered;
            for (let part = 0; part < 3; part++)
              picture.data[place + part] = value * (1 - opaque) + colour[part] * opaque;
          });
        }
      }
      context.putImageData(picture, 0, 0);
      const mm = steps * spacing, sign = mm > 0 ? "+" : mm < 0 ? "\u2212" : "";
      const distance = String(Math.round(Math.abs(mm) * 10) / 10);
      label.value = `${sign}${distance} mm`;
      slider.setAttribute("aria-valuetext", mm === 0 ? "at the middle" : mm > 0
        ? `${distance} mm towards head, back and left`
        : `${distance} mm towards feet, front and right`);
    }

    draw();
    still.replaceWith(canvas);
    slide.hidden = false;
    slider.addEventListener("input", draw);
    if (!light) return;
    light.parentElement.hidden = false;
    light.addEventListener("change", () => {
      cube.classList.toggle("lit", light.checked);
      draw();
    });
    cube.classList.add("scripted");
    cube.classList.toggle("lit", light.checked);  // a page that is loaded anew keeps its switches
  }

  Promise.all(pictures.filter(Boolean).map(reader)).then(start);
}
