// Pictures from files -> data URLs that the server reads. Larger ones are made smaller here: the server would do the
// same, and conversations with them would not fit into a request.

const READ_BY_SERVER = ["image/png", "image/jpeg", "image/webp", "image/gif"];
const LONGEST_SIDE = 1540;
const MAX_BYTES = 4 * 2 ** 20;

function asDataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

// Rejects with an Error that names the file.
export async function imageOf(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name} is no image that can be read here.`);
  }
  const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  if (scale === 1 && READ_BY_SERVER.includes(file.type) && file.size <= MAX_BYTES) return asDataUrl(file);
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  // JPEG knows no transparency; the server puts white behind it as well.
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.92);
}
