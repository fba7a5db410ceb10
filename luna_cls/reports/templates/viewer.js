"use strict";
for (const sentence of document.querySelectorAll(".how")) sentence.hidden = false;
// Each card holds all planes of its cube in one picture. Without this script the middle planes are seen.
for (const cube of document.querySelectorAll(".cube")) {
  const size = Number(cube.dataset.size), spacing = Number(cube.dataset.spacing), gap = Number("{{ gap_px }}");
  const still = cube.querySelector("img"), slide = cube.querySelector(".slide");
  const slider = slide.querySelector("input"), label = slide.querySelector("output");
  const sprite = new Image();

  function start() {
    const across = Math.ceil(Math.sqrt(size)), hidden = document.createElement("canvas");
    hidden.width = sprite.width;
    hidden.height = sprite.height;
    const reader = hidden.getContext("2d", { willReadFrequently: true });
    reader.drawImage(sprite, 0, 0);
    const pixels = reader.getImageData(0, 0, sprite.width, sprite.height).data;
    const grey = (z, y, x) =>
      pixels[4 * ((Math.floor(z / across) * size + y) * sprite.width + (z % across) * size + x)];

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
          const planes = [grey(at, row, column), grey(last - row, at, column), grey(last - row, column, at)];
          planes.forEach((value, plane) => {
            const place = 4 * (row * canvas.width + plane * (size + gap) + column);
            picture.data.fill(value, place, place + 3);
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
  }

  sprite.addEventListener("load", start, { once: true });
  sprite.src = "data:image/png;base64," + cube.dataset.cube;
}
